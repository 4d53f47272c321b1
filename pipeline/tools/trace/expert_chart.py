"""Layers x time: which experts were found where they are computed, which came from host memory, and which were read."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from actors.core.trace import Count
from pipeline.engine.actor_names import EXPERT_COUNTER
from pipeline.tools.trace.intervals import Interval
from pipeline.tools.trace.recording import Recording
from pipeline.tools.trace.svg import Scale, axis, picture, rect, row_name

COUNTER = re.compile(re.escape(EXPERT_COUNTER).replace(r"\{\}", "(.+)"))
MOST_COLUMNS, MOST_HEIGHT, ROW_HEIGHT = 160, 480.0, 14.0
TOP = 4.0


@dataclass(slots=True)
class ExpertWant:
    """What a layer wanted at a moment: how many experts, how many of them it found, how many had to be read, and how
    many the CPU computed for the device.
    """

    at: float
    layer: int
    wanted: int = 0
    found: int = 0
    read: int = 0
    cpu: int = 0


def of_experts(count: Count) -> bool:
    """Whether it is of a layer's experts."""
    return COUNTER.fullmatch(count.counter) is not None


def expert_wants(recording: Recording) -> list[ExpertWant]:
    """All that layers wanted, in order of time."""
    wants: list[ExpertWant] = []
    for count in recording.counts:
        if (match := COUNTER.fullmatch(count.counter)) is not None:
            layer, what = int(match[1]), match[2]
            if what == "wanted":
                wants.append(ExpertWant(count.at, layer, count.value))
            elif wants and wants[-1].layer == layer and what in ("found", "read", "cpu"):
                setattr(wants[-1], what, count.value)
    return wants


def span_of(wants: Sequence[ExpertWant]) -> Interval:
    """From the first to the last."""
    return wants[0].at, wants[-1].at


def found_sentence(wants: Sequence[ExpertWant]) -> str:
    """Say how many there were in all."""
    each = ("wanted", "found", "read", "cpu")
    wanted, found, read, cpu = (sum(getattr(one, what) for one in wants) for what in each)
    host = f", {(wanted - found - read) / wanted:.1%} came from host memory" if wanted > found + read else ""
    by_cpu = f"; the CPU computed {cpu / wanted:.1%}" if cpu else ""
    mean, shares = wanted / len(wants), f"{found / wanted:.1%} were found{host}, {read / wanted:.1%} were read"
    return f"Of all, {shares}{by_cpu}; a layer wanted {mean:.1f}."


def expert_chart(wants: Sequence[ExpertWant], scale: Scale) -> str:
    """A row for each layer; each cell has, from below, the share that was read, and that came from host memory."""
    layers = sorted({one.layer for one in wants})
    height = min(ROW_HEIGHT, MOST_HEIGHT / len(layers))
    passes = -(-len(wants) // len(layers))
    columns = max(1, min(MOST_COLUMNS, passes))
    left, right = scale.x(scale.started), scale.x(scale.ended)
    width = (right - left) / columns
    cells: defaultdict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in wants:
        column = min(columns - 1, int((scale.x(one.at) - left) / width)) if width else 0
        sums = cells[one.layer, column]
        for index, count in enumerate((one.wanted, one.wanted - one.found - one.read, one.read)):
            sums[index] += count
    bottom = TOP + height * len(layers)
    parts = axis(scale, TOP, bottom) if scale.ended > scale.started else []
    for row, layer in enumerate(layers):
        top = TOP + height * row
        if height >= ROW_HEIGHT or row % 8 == 0:
            parts.append(row_name(top + height / 2 + 4, f"layer {layer}", small=True))
        parts.append(rect(left, top, right - left, height - 1, "found"))
        for column in range(columns):
            wanted, sent, read = cells[layer, column]
            base = top + height - 1
            for count, style in ((read, "read"), (sent, "sent")):
                if count:
                    share = (height - 1) * count / wanted
                    base -= share
                    title = f"layer {layer}: {wanted} wanted, {sent} from host memory, {read} read"
                    parts.append(rect(left + width * column, base, width, share, style, title))
    return picture(bottom + 22, parts, "experts found and read, by layer and time")
