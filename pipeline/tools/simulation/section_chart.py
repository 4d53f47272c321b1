"""How much faster several sections are, by their number, as a picture of its own."""

import math
from collections.abc import Iterable, Sequence

from pipeline.tools.simulation.compared_sections import ComparedSections
from pipeline.tools.trace.report import STYLE
from pipeline.tools.trace.svg import LEFT, RIGHT, WIDTH, Scale, line, picture, row_name, text

TOP, HEIGHT, BELOW = 44.0, 320.0, 44.0
NAMESPACE = 'xmlns="http://www.w3.org/2000/svg" '
CURVES = (("dealt", "attn"), ("contiguous", "kv"), ("in_flight", "ffn"))
KEYS = {"dealt": "layers dealt", "contiguous": "contiguous", "in_flight": "contiguous, passes in flight"}


def section_picture(rows: Sequence[ComparedSections]) -> str:
    """An SVG file, both axes by powers of two. The thin line is as many times faster as there are sections."""
    highest = max(1.0, math.log2(rows[-1].sections))
    scale = Scale(0, 0, highest)
    parts = [f"<style>{STYLE.read_text()}</style>", *_grid(scale, highest)]
    parts.append(_curve([(0.0, 0.0), (highest, highest)], scale, "flat"))
    for index, (name, colour) in enumerate(CURVES):
        points = [(math.log2(row.sections), math.log2(rows[0].dealt / getattr(row, name))) for row in rows]
        parts.append(_curve(points, scale, colour))
        x = LEFT + 250.0 * index
        parts += [
            f'<path class="curve {colour}" d="M{x:.0f} 29H{x + 24:.0f}"/>',
            text(x + 30, 33, KEYS[name], "tick begin"),
        ]
    return picture(TOP + HEIGHT + BELOW, parts, "how much faster by sections").replace("<svg ", f"<svg {NAMESPACE}", 1)


def _grid(scale: Scale, highest: float) -> Iterable[str]:
    yield row_name(TOP + 4, "times as fast")
    for power in range(math.ceil(highest) + 1):
        at = min(power, highest)
        y = TOP + HEIGHT * (1 - at / highest)
        yield f'<path class="grid" d="M{LEFT:.0f} {y:.1f}H{WIDTH - RIGHT:.0f}"/>'
        yield text(WIDTH, y + 4, f"{2**at:g}", "tick end")
        yield line(scale.x(at), TOP, TOP + HEIGHT + 4, "grid")
        yield text(scale.x(at), TOP + HEIGHT + 17, f"{2**at:g}", "tick")
    yield text(LEFT, TOP + HEIGHT + 34, "sections", "tick begin")


def _curve(points: Iterable[tuple[float, float]], scale: Scale, colour: str) -> str:
    """Slower than one section is drawn as just as fast."""
    path = "L".join(
        f"{scale.x(at):.1f} {TOP + HEIGHT * (1 - max(0.0, min(up, scale.ended)) / scale.ended):.1f}"
        for at, up in points
    )
    return f'<path class="curve {colour}" d="M{path}"/>'
