"""The rows of the overlap timeline: what each resource did, one thing after the other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from actors.core.trace import Span
from pipeline.formats.parts import HEAD, LAYER_PARTS, kind_of
from pipeline.tools.trace.gaps import GapPiece
from pipeline.tools.trace.intervals import Interval, without
from pipeline.tools.trace.recording import COMPUTE, Recording
from pipeline.tools.trace.sections import SectionNumber, by_section, of_section
from pipeline.tools.trace.summary import duration, resources
from pipeline.tools.trace.svg import CHARACTER_WIDTH, LEFT, RIGHT, WIDTH, Scale, rect, row_name, text

ROW_HEIGHT, LINE_HEIGHT = 32.0, 12.0
NARROWEST = 0.6
"""Slices that are narrower than this, in units of the picture, are drawn as one."""
HATCHED_FROM = 5.0
LEGEND = {part: part for part in LAYER_PARTS} | {"kv": "KV blocks", HEAD: HEAD}
"""The groups that have a colour of their own, by their kind."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One stretch of a row; `span` is None where many that are too narrow to see became one."""

    started: float
    ended: float
    span: Span | None


@dataclass(frozen=True, slots=True)
class LaneRow:
    """One row. The `actor` is named without the number of its section."""

    name: str
    actor: str
    slices: Sequence[Slice]
    section: SectionNumber = None


def lanes(recording: Recording) -> list[LaneRow]:
    """One row for each resource of each section, but one for each micro-batch that is computed."""
    rows: list[LaneRow] = []
    for section, own in by_section(recording).items():
        for actor, called in resources(own).items():
            work = [span for span in own.spans if span.actor == actor and span.what == "work"]
            parts = sorted({span.part for span in work}) if actor == COMPUTE else [0]
            for part in parts:
                name = of_section(called if len(parts) == 1 else f"{called} micro-batch {part}", section)
                slices = one_after_the_other(span for span in work if span.part == part)
                rows.append(LaneRow(name, actor, slices, section))
    return rows


def one_after_the_other(work: Iterable[Span]) -> list[Slice]:
    """Show, of operations that run at the same time or wait in line at a disk, the one that ends first."""
    slices: list[Slice] = []
    covered: list[Interval] = []
    for span in sorted(work, key=lambda span: (span.ended, span.started)):
        slices += [Slice(*part, span) for part in without([(span.started, span.ended)], covered)]
        started = span.started
        while covered and covered[-1][1] >= started:
            started = min(started, covered.pop()[0])
        covered.append((started, span.ended))
    return sorted(slices, key=lambda one: one.started)


def thinned(slices: Iterable[Slice], narrowest_seconds: float) -> list[Slice]:
    """Put neighbours together that would be too narrow to see."""
    kept: list[Slice] = []
    for one in slices:
        before = kept[-1] if kept else None
        if (
            before is not None
            and one.started - before.ended < narrowest_seconds
            and max(one.ended - one.started, before.ended - before.started if before.span else 0.0) < narrowest_seconds
        ):
            kept[-1] = Slice(before.started, one.ended, None)
        else:
            kept.append(one)
    return kept


def style(span: Span | None) -> str:
    """The colour of a slice: by the kind of group, lighter in every second layer."""
    if span is None:
        return "many"
    kind = kind_of(span.group)
    kind = kind if kind in LEGEND else "other"
    return f"{kind} odd" if span.layer % 2 else kind


def draw_lane(lane: LaneRow, scale: Scale, top: float) -> list[str]:
    """The slices of a row that lie in the window, with names where there is room."""
    base = top + ROW_HEIGHT / 2 + 4
    parts = [row_name(base, lane.name)]
    shown = (one for one in lane.slices if one.ended > scale.started and one.started < scale.ended)
    for one in thinned(shown, NARROWEST * (scale.ended - scale.started) / (WIDTH - LEFT - RIGHT)):
        x, right = scale.x(one.started), scale.x(one.ended)
        parts.append(rect(x, top + 2, right - x, ROW_HEIGHT - 4, style(one.span), _title(one)))
        lines = _label(one.span, right - x)
        for index, label in enumerate(lines):
            y = base + LINE_HEIGHT * (index - (len(lines) - 1) / 2)
            parts.append(text((x + right) / 2, y, label, f"on {style(one.span)}"))
    return parts


def draw_piece(piece: GapPiece, before: str, scale: Scale, top: float, height: float) -> str:
    """A piece of a gap, hatched in the colour of its cause."""
    x, right = scale.x(piece.started), scale.x(piece.ended)
    kind = "hatch" if right - x >= HATCHED_FROM else "solid"
    title = f"{duration(piece.ended - piece.started)} waiting: {piece.cause} (before {before})"
    return rect(x, top + 2, right - x, height - 4, f"{kind} {cause_style(piece.cause)}", title)


def cause_style(cause: str) -> str:
    """The style of a cause."""
    return f"cause-{cause.lower().replace(' ', '-')}"


def _title(one: Slice) -> str:
    if one.span is None:
        return f"many groups, {duration(one.ended - one.started)}"
    span, seconds = one.span, one.ended - one.started
    queued = span.ended - span.started - seconds
    behind = f", after {duration(queued)} behind others" if queued > seconds * 1e-3 else ""
    return f"layer {span.layer} {span.group}, seq {span.seq}: {duration(seconds)}{behind}"


def _label(span: Span | None, width: float) -> Sequence[str]:
    """The lines of as much of a slice's name as has room in it."""
    if span is None:
        return ()
    layer = f"L{span.layer}"
    for lines in ((f"{layer} {span.group}",), (layer, span.group), (layer,), (str(span.layer),)):
        if max(len(line) for line in lines) * CHARACTER_WIDTH + 2 <= width:
            return lines
    return ()
