"""The two charts over time: the overlap timeline of a window, and the whole run at a glance."""

import itertools
from collections import defaultdict
from collections.abc import Sequence

from actors.core.trace import Count, Span
from pipeline.tools.trace.expert_chart import of_experts
from pipeline.tools.trace.gaps import CAUSES
from pipeline.tools.trace.intervals import Interval, total_seconds, within
from pipeline.tools.trace.journeys import Journeys, computations, pass_starts, times_of
from pipeline.tools.trace.lane_rows import ROW_HEIGHT, LaneRow, cause_style, draw_lane, draw_piece, lanes
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK, Recording
from pipeline.tools.trace.sections import SectionNumber, by_section, plain_names
from pipeline.tools.trace.summary import Summary, standstill
from pipeline.tools.trace.svg import LEFT, RIGHT, WIDTH, Scale, area, axis, line, picture, rect, row_name, steps, text

MOST_GROUPS = 24
"""So many computations side by side leave each of them room for its name."""
SHOWN_PASSES = 2
COUNTER_HEIGHT, OVERVIEW_HEIGHT, SECTION_GAP = 30.0, 30.0, 10.0
MOST_COLUMNS = 480
PATTERNS = (
    "<defs>"
    + "".join(
        f'<pattern id="{cause_style(cause)}" width="6" height="6" patternUnits="userSpaceOnUse"'
        f' patternTransform="rotate(45)"><rect class="faint {cause_style(cause)}" width="6" height="6"/>'
        f'<rect class="solid {cause_style(cause)}" width="2.6" height="6"/></pattern>'
        for cause in CAUSES
    )
    + "</defs>"
)


def readable_window(recording: Recording, summary: Summary) -> Interval:
    """The last two passes, or the last if the line stood still between them; of long ones, the last groups.

    What the first group waited for is shown with it, but of a pause only so much that it does not fill the picture.
    """
    computed = computations(recording.spans)
    whole = [span for span in computed if not span.part]
    starts = pass_starts(whole)[-SHOWN_PASSES:]
    if not starts:
        return summary.started, summary.ended
    still = standstill(recording.spans, summary.gaps)
    still_seconds = total_seconds(within(still, starts[0].started, starts[-1].started))
    began = starts[-1] if still_seconds > (summary.ended - starts[0].started) / 2 else starts[0]
    first = whole[max(whole.index(began), len(whole) - MOST_GROUPS)]
    started = max((span.ended for span in computed if span.started < first.started), default=summary.started)
    pauses = within(still, started, first.started)
    if pauses:
        started = max(started, pauses[-1][1] - (summary.ended - first.started) / 4)
    return min(max(started, summary.started), first.started), summary.ended


def timeline_chart(recording: Recording, summary: Summary, window: Interval) -> str:
    """Draw rows of slices, gaps by cause, and queues and slots on the same axis; those of a section side by side."""
    scale = Scale(recording.zero, *window)
    top = 18.0
    rows = lanes(recording)
    counters = _counters(recording)
    tops = _tops(rows, top)
    lanes_end = tops[-1] + ROW_HEIGHT if rows else top
    height = lanes_end + (14 if counters else 0) + COUNTER_HEIGHT * len(counters)
    parts = [PATTERNS, *axis(scale, top, height), *_pass_marks(recording, scale, top, height)]
    computing = defaultdict[SectionNumber, list[float]](list)
    for lane, lane_top in zip(rows, tops, strict=True):
        if lane.actor == COMPUTE:
            computing[lane.section].append(lane_top)
    for gap in summary.gaps:
        if shown := computing[gap.section]:
            before = f"L{gap.layer} {gap.group}"
            for piece in gap.pieces:
                if piece.ended > scale.started and piece.started < scale.ended:
                    parts.append(draw_piece(piece, before, scale, shown[0], ROW_HEIGHT * len(shown)))
    for lane, lane_top in zip(rows, tops, strict=True):
        parts.extend(draw_lane(lane, scale, lane_top))
    at = lanes_end + 14
    for name, counts in counters.items():
        parts.extend(_draw_counter(name, counts, scale, at))
        at += COUNTER_HEIGHT
    return picture(height + 22, parts, "what each resource did, over time")


def _tops(rows: Sequence[LaneRow], top: float) -> list[float]:
    """Where each row begins; the sections stand apart."""
    tops: list[float] = []
    for before, lane in zip([None, *rows], rows, strict=False):
        top += SECTION_GAP if before is not None and before.section != lane.section else 0.0
        tops.append(top)
        top += ROW_HEIGHT
    return tops


def overview_chart(recording: Recording, summary: Summary, window: Interval) -> str:
    """Draw how busy each resource was, column by column, and on top of the computing what the device waited for."""
    scale = Scale(recording.zero, summary.started, summary.ended)
    height = 6 + OVERVIEW_HEIGHT * len(summary.names)
    left, right = scale.x(window[0]), scale.x(window[1])
    parts = [rect(left, 2, right - left, height, "window"), *axis(scale, 6, height)]
    # Either a group has several columns or a column several groups: anything between would flicker.
    columns = MOST_COLUMNS if 3 * summary.groups <= MOST_COLUMNS else min(summary.groups // 4, MOST_COLUMNS)
    plain = plain_names(summary.names)
    for index, (actor, name) in enumerate(summary.names.items()):
        base = 6 + OVERVIEW_HEIGHT * (index + 1) - 2
        layers = [("busy", times_of(recording.spans, actor, "work"))]
        if plain[actor][0] == COMPUTE:
            gaps = [gap for gap in summary.gaps if gap.section == plain[actor][1]]
            for cause in CAUSES:
                pieces = (piece for gap in gaps for piece in gap.pieces if piece.cause == cause)
                layers.append((f"solid {cause_style(cause)}", [(piece.started, piece.ended) for piece in pieces]))
        below = [0.0] * columns
        drawn: list[str] = []
        for style, times in layers:
            if times:
                shares = shares_of_columns(times, scale, columns)
                below = [low + share for low, share in zip(below, shares, strict=True)]
                drawn.append(_columns(below, base, style))
        parts.extend(reversed(drawn))
        parts.append(row_name(base - 9, name))
        parts.append(text(WIDTH, base - 9, f"{summary.shares[actor]:.0%}", "tick end"))
    return picture(height + 22, parts, "how busy each resource was over the whole run")


def shares_of_columns(times: Sequence[Interval], scale: Scale, columns: int) -> list[float]:
    """Cut the scale into so many columns; which share of each one the intervals cover."""
    seconds = (scale.ended - scale.started) / columns
    shares = [0.0] * columns
    for started, ended in within(times, scale.started, scale.ended):
        first = min(int((started - scale.started) / seconds), columns - 1)
        last = min(int((ended - scale.started) / seconds), columns - 1)
        for column in range(first, last + 1):
            left = scale.started + column * seconds
            shares[column] += max(0.0, min(ended, left + seconds) - max(started, left)) / seconds
    return shares


def _columns(shares: Sequence[float], base: float, style: str) -> str:
    width = (WIDTH - LEFT - RIGHT) / len(shares)
    points: list[tuple[float, float]] = []
    for column, share in enumerate(shares):
        y = base - min(share, 1.0) * (OVERVIEW_HEIGHT - 5)
        points += [(LEFT + column * width, y), (LEFT + (column + 1) * width, y)]
    return area(points, base, style)


def _pass_marks(recording: Recording, scale: Scale, top: float, bottom: float) -> list[str]:
    parts: list[str] = []
    for number, span in enumerate(pass_starts(computations(recording.spans)), start=1):
        if scale.started <= span.started < scale.ended:
            x = scale.x(span.started)
            parts += [line(x, top - 4, bottom, "mark"), text(x + 3, top - 5, f"pass {number}", "tick begin")]
    return parts


def groups_on_device(spans: Sequence[Span]) -> list[Count]:
    """Count the groups that moved to the device, waited there or were computed.

    The device's slots are leased for a shorter time: they are given back as soon as the computation is launched.
    """
    journeys = Journeys(spans)
    held: dict[int, Interval] = {}
    for span in computations(spans):
        came = journeys.before(LINK, span) or journeys.before(DISK, span) or span
        held[id(came)] = (came.started, max(span.ended, held.get(id(came), (0.0, span.ended))[1]))
    changes = sorted([(ended, -1) for _, ended in held.values()] + [(started, 1) for started, _ in held.values()])
    values = itertools.accumulate(change for _, change in changes)
    return [Count("groups on device", at, value) for (at, _), value in zip(changes, values, strict=True)]


def _counters(recording: Recording) -> dict[str, list[Count]]:
    """All counts by counter, section by section: the queues in the order of the line, then what else there is."""
    counters: dict[str, list[Count]] = {}
    for section, own in by_section(recording).items():
        found: dict[str, list[Count]] = {f"queue {actor}": [] for actor in own.configuration.get("actors", ())}
        shown = (count for count in own.counts if not of_experts(count))
        for count in (*shown, *groups_on_device(own.spans)):
            found.setdefault(count.counter, []).append(count)
        queues_first = sorted(found.items(), key=lambda item: not item[0].startswith("queue"))
        number = "" if section is None else f" {section}"
        counters |= {f"{name}{number}": counts for name, counts in queues_first if counts}
    return counters


def _draw_counter(name: str, counts: Sequence[Count], scale: Scale, top: float) -> list[str]:
    most = max(1, *(count.value for count in counts))
    base = top + COUNTER_HEIGHT - 3
    unit = (COUNTER_HEIGHT - 8) / most
    before = [count for count in counts if count.at <= scale.started][-1:]
    highest: dict[float, int] = {LEFT: before[0].value if before else 0}
    latest = dict(highest)
    for count in counts:
        if scale.started < count.at <= scale.ended:
            x = round(scale.x(count.at) * 2) / 2
            highest[x] = max(highest.get(x, 0), count.value)
            latest[x] = count.value
    points = [point for x in highest for point in ((x, base - highest[x] * unit), (x, base - latest[x] * unit))]
    kind = "queue" if name.startswith("queue") else "slots"
    return [
        steps(points, base, scale.x(scale.ended), f"counter {kind}"),
        row_name(base - 5, name, small=True),
        text(WIDTH, base - 5, f"max {most}", "tick end"),
    ]
