"""Hit rate against slots, by policy, as a picture of its own."""

from collections.abc import Iterable

from pipeline.tools.routing.hit_curves import SHOWN, HitCurves
from pipeline.tools.trace.report import STYLE
from pipeline.tools.trace.svg import LEFT, RIGHT, WIDTH, Scale, line, picture, row_name, text, tick_seconds

TOP, HEIGHT, BELOW = 44.0, 320.0, 44.0
COLOURS = ("attn", "kv", "ffn", "head", "other")
NAMESPACE = 'xmlns="http://www.w3.org/2000/svg" '


def curve_picture(curves: HitCurves) -> str:
    """An SVG file. Flat routing, which uses all experts alike, would find the share that is kept: the thin line."""
    model = curves.wants.model
    experts = len(model.layers) * model.experts
    scale = Scale(0, 0, max(experts, *curves.slots))
    title = (
        f"{model.name}: {len(model.layers)} layers x {model.experts} experts, {model.chosen} of each for a token; "
        f"{curves.wants.tokens:,} tokens decoded"
    )
    parts = [f"<style>{STYLE.read_text()}</style>", text(LEFT, 14, title, "tick begin"), *_grid(scale)]
    parts.append(_curve([(0.0, 0.0), (float(experts), 1.0)], scale, "flat"))
    for index, (name, colour) in enumerate(zip(SHOWN, COLOURS, strict=True)):
        points = list(zip(map(float, curves.slots), curves.hit_rates(name), strict=True))
        parts.append(_curve(points, scale, colour))
        x = LEFT + 150.0 * index
        parts += [_key(x, colour), text(x + 30, 33, name, "tick begin")]
    key = LEFT + 150.0 * len(SHOWN)
    parts += [_key(key, "flat"), text(key + 30, 33, "flat routing", "tick begin")]
    return picture(TOP + HEIGHT + BELOW, parts, "hit rate by slots").replace("<svg ", f"<svg {NAMESPACE}", 1)


def _grid(scale: Scale) -> Iterable[str]:
    yield row_name(TOP + 4, "hit rate")
    for percent in range(0, 101, 20):
        y = TOP + HEIGHT * (1 - percent / 100)
        yield f'<path class="grid" d="M{LEFT:.0f} {y:.1f}H{WIDTH - RIGHT:.0f}"/>'
        yield text(WIDTH, y + 4, f"{percent} %", "tick end")
    step = max(1, round(tick_seconds(scale.ended)))
    for slots in range(0, round(scale.ended) + 1, step):
        yield line(scale.x(slots), TOP, TOP + HEIGHT + 4, "grid")
        yield text(scale.x(slots), TOP + HEIGHT + 17, f"{slots:,}", "tick")
    yield text(LEFT, TOP + HEIGHT + 34, "slots for experts, those that what moves needs among them", "tick begin")


def _curve(points: Iterable[tuple[float, float]], scale: Scale, colour: str) -> str:
    path = "L".join(f"{scale.x(slots):.1f} {TOP + HEIGHT * (1 - rate):.1f}" for slots, rate in points)
    return f'<path class="curve {colour}" d="M{path}"/>'


def _key(x: float, colour: str) -> str:
    return f'<path class="curve {colour}" d="M{x:.0f} 29H{x + 24:.0f}"/>'
