"""Measures from recorded spans how well transfers and computations overlapped: the rows of the policy table.

The same code looks at simulated and at real runs, so nothing here relies on exact times.
"""

import bisect
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from actors.core.message import GroupKey
from actors.core.order import layer_parts
from actors.core.trace import Span
from pipeline.engine.actor_names import KV_ACTORS
from pipeline.system.table import aligned
from pipeline.tools.trace.intervals import Interval, total_seconds, union, within
from pipeline.tools.trace.passes import NEVER, group_times, work_by_actor
from pipeline.tools.trace.recording import DISK, LINK

MS = 1000.0
ROUNDING_SECONDS = 1e-9
"""Moments that should meet may miss each other by their last bits."""
LAYERS_OF_LONG_DELAY = 4
"""The analysis tells the delay from one layer to the next, and from a layer to the fourth after it."""
LEGEND = """\
ideal: the busiest of links and device works without a pause; gaps: the device idles, in a layer and between two
L0-L1, L0-L4: both gaps of one layer, and of four; asks at: groups that are asked for when an attn or an ffn starts
link busy: while an attn is computed, an ffn, and in all; host blocked: the device idles although its group is there"""
"""What the columns of the policy table mean that do not say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """One row of the policy table; all times in milliseconds.

    "Steady" is the second half of the layers of every pass. A window is the time from the start to the end of the
    computation of an attn, or of an ffn, all micro-batches together. The device is idle while none of its compute lanes
    works. A link moves bytes while at least one of its transfers runs.

    Attributes:
        policy: the name of the policy that ran.
        total_ms: from the first start of a transfer or computation to the end of the last computation, all passes. When
            passes before the window were left out, from the end of their last computation.
        ms_per_layer: from the start of one steady attn to that of the next, on average; below four layers, a pass /
            layers, without the first of several passes.
        ideal_ms: how long the busiest resource worked in that time: disk, H2D, a compute lane, or a KV lane.
        ratio_to_ideal: total_ms / ideal_ms.
        gap_in_layer_ms: the device idle between a steady layer's attn and ffn, on average.
        gap_between_layers_ms: the device idle between a steady layer's ffn and the next attn, on average.
        l0_l1_ms: both gaps together.
        l0_l4_ms: the same over four successive layers, on average.
        groups_requested: how many groups a trigger asks for at the start of an attn and of an ffn; without triggers,
            how many transfers begin in such a window, on average.
        link_use: the share of the attn windows, the ffn windows and the total time in which the busier link, disk or
            H2D, moves bytes.
        host_blocked_ms: for policies that block, how long the device idles with a group there until its computation
            starts, on average; 0 for others.
        groups_on_device_peak: most groups that moved to, waited on or computed on the device at a time: from the start
            of the last hop, or of the read where it is the only one, to the end of the computation.
        depth_used: how many layers ahead of the one that computes groups were asked for, at most; without triggers, how
            far ahead a transfer had been issued.
    """

    policy: str
    total_ms: float
    ms_per_layer: float
    ideal_ms: float
    ratio_to_ideal: float
    gap_in_layer_ms: float
    gap_between_layers_ms: float
    l0_l1_ms: float
    l0_l4_ms: float
    groups_requested: Mapping[str, float]
    link_use: Mapping[str, float]
    host_blocked_ms: float
    groups_on_device_peak: int
    depth_used: int

    def as_dict(self) -> dict[str, Any]:
        """The columns as plain values, in order; milliseconds and shares to six decimals."""
        return {name: _rounded(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def of(
        cls,
        policy: str,
        spans: Iterable[Span],
        order: Sequence[GroupKey],
        *,
        blocking: bool = False,
        asked: Mapping[str, int] | None = None,
        depth: int | None = None,
        first_pass: int = 0,
        passes: int | None = None,
    ) -> "Overlap":
        """Compute the row from the spans of whole passes over `order`.

        `asked` is what triggers asked for by kind of half, and `depth` how many layers ahead; None without triggers.
        The window is `passes` passes from `first_pass` on, all that follow unless said. Raises ValueError when it holds
        no computation.
        """
        run = _PassWindow(list(spans), order, first_pass, passes)
        total = run.ended - run.started
        ideal = max(map(total_seconds, run.resources.values()))
        link = max(run.resources[DISK], run.resources[LINK], key=total_seconds)
        gaps = run.gaps()
        in_layer, between = ([gap for one in gaps for gap in one[side]] for side in (0, 1))
        delays = [[inside + after for inside, after in zip(*one, strict=True)] for one in gaps]
        return cls(
            policy=policy,
            total_ms=total * MS,
            ms_per_layer=run.seconds_per_layer() * MS,
            ideal_ms=ideal * MS,
            ratio_to_ideal=total / ideal,
            gap_in_layer_ms=fmean(in_layer) * MS,
            gap_between_layers_ms=fmean(between) * MS,
            l0_l1_ms=fmean(itertools.chain(*delays)) * MS,
            l0_l4_ms=fmean(map(_long_delay, delays)) * MS,
            groups_requested={
                f"{kind}_window": float(asked.get(kind, 0)) if asked else run.begun_per_window(kind)
                for kind in run.parts
            },
            link_use={f"{kind}_window": run.share_of_windows(kind, link) for kind in run.parts}
            | {"total": total_seconds(link) / total},
            host_blocked_ms=run.host_blocked_seconds() * MS if blocking else 0.0,
            groups_on_device_peak=run.most_on_device(),
            depth_used=run.deepest() if depth is None else depth,
        )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 6) if isinstance(value, float) else value


class _PassWindow:
    """The spans of a window of passes, by group, in compute order, and by resource."""

    def __init__(self, spans: Iterable[Span], order: Sequence[GroupKey], first_pass: int, passes: int | None) -> None:
        self._order = order
        self.parts = layer_parts(order)
        self._layers = [index for index, (_, part) in enumerate(order) if part == self.parts[0]]
        work = work_by_actor(spans)
        groups = group_times(work, order)
        first = first_pass * len(order)
        end = len(groups) and max(groups) + 1 if passes is None else first + passes * len(order)
        self._by_position = {position: groups[position] for position in sorted(groups) if first <= position < end}
        self.groups = list(self._by_position.values())
        if not self.groups:
            raise ValueError(f"no computation was recorded from pass {first_pass} on")
        self._passes = sorted({position // len(order) * len(order) for position in self._by_position})
        moments = [moment for group in self.groups for moment in (group.started, group.began) if moment > NEVER]
        earlier = [group.ended for position, group in groups.items() if position < first]
        self.started = max(earlier) if earlier else min(moments)
        self.ended = max(group.ended for group in self.groups)
        self.resources = self._resources(work)

    def _resources(self, work: Mapping[str, Sequence[Span]]) -> dict[str, list[Interval]]:
        """Return when each resource was at work. Micro-batches compute on a lane for each kind of half."""
        busy: dict[str, list[Interval]] = {DISK: [], LINK: []}
        for actor, spans in work.items():
            if actor in busy or actor in KV_ACTORS:
                busy[actor] = [(span.started, span.ended) for span in spans]
        several = any(len(group.parts) > 1 for group in self.groups)
        for group in self.groups:
            busy.setdefault(f"compute {group.kind}" if several else "compute", []).extend(group.parts)
        return {name: within(union(intervals), self.started, self.ended) for name, intervals in busy.items()}

    def seconds_per_layer(self) -> float:
        count = len(self._layers)
        if count >= 4:
            steady, last = self._layers[count // 2], self._layers[-1]
            at = self._by_position
            seconds = fmean(at[base + last].started - at[base + steady].started for base in self._passes)
            return seconds / (count - 1 - count // 2)
        if len(self._passes) == 1:
            return (self.ended - self.started) / count
        first = max(group.ended for position, group in self._by_position.items() if position < self._passes[1])
        return (self.ended - first) / count / (len(self._passes) - 1)

    def gaps(self) -> list[tuple[list[float], list[float]]]:
        """Return by pass how long the device idled inside each steady layer, and between it and the next."""
        idle: defaultdict[int, float] = defaultdict(float)
        parts = sorted((*part, position) for position, group in self._by_position.items() for part in group.parts)
        until = self.started
        for started, ended, position in parts:
            idle[position] += max(0.0, started - until)
            until = max(until, ended)
        count = len(self._layers)
        if count == 1:
            return [([idle[base + self._layers[0] + 1]], [0.0]) for base in self._passes]
        steady = range(min(count // 2, count - 2), count - 1)
        inside = [self._layers[layer] + 1 for layer in steady]
        after = [self._layers[layer + 1] for layer in steady]
        return [([idle[base + at] for at in inside], [idle[base + at] for at in after]) for base in self._passes]

    def begun_per_window(self, kind: str) -> float:
        windows = self._windows(kind)
        moments = sorted(group.began + ROUNDING_SECONDS for group in self.groups)
        begun = sum(bisect.bisect_left(moments, end) - bisect.bisect_left(moments, start) for start, end in windows)
        return begun / len(windows)

    def share_of_windows(self, kind: str, link: Sequence[Interval]) -> float:
        windows = union(self._windows(kind))
        seconds = total_seconds(windows)
        return sum(total_seconds(within(link, *window)) for window in windows) / seconds if seconds else 0.0

    def host_blocked_seconds(self) -> float:
        """Mean over all groups but the first of a pass, before which the host also hands results on."""
        return fmean(
            max(0.0, group.started - max(before.ended, group.arrived))
            for (_, before), (position, group) in itertools.pairwise(self._by_position.items())
            if position % len(self._order)
        )

    def most_on_device(self) -> int:
        changes = []
        for group in self.groups:
            entered = max((started for started, _ in group.hops), default=group.started)
            changes += [(entered, 1), (group.ended - ROUNDING_SECONDS, -1)]
        return max(itertools.accumulate(change for _, change in sorted(changes)))

    def deepest(self) -> int:
        starts = [group.started for group in self.groups]
        depths = [0]
        for group in self.groups:
            if group.hops:
                issued = min(started for started, _ in group.hops)
                computing = max(0, bisect.bisect_right(starts, issued + ROUNDING_SECONDS) - 1)
                depths.append(group.layer - self.groups[computing].layer)
        return max(depths)

    def _windows(self, kind: str) -> list[Interval]:
        return [(group.started, group.ended) for group in self.groups if group.kind == kind]


def _long_delay(delays: Sequence[float]) -> float:
    """The mean sum of so many successive delays; where there are fewer, as many times their mean."""
    count = LAYERS_OF_LONG_DELAY
    sums = [sum(delays[first : first + count]) for first in range(len(delays) - count + 1)]
    return fmean(sums) if sums else count * fmean(delays)


def policy_table(rows: Sequence[Overlap], beside: Mapping[tuple[str, str], Sequence[str]] | None = None) -> str:
    """One line per row under two lines of headings, name and unit; text to the left, numbers to the right.

    `beside` holds more columns, to be set beside the milliseconds per layer: by name and unit, a cell for each row.
    """
    columns: dict[tuple[str, str], Sequence[str]] = {
        ("policy", ""): [row.policy for row in rows],
        ("total", "s"): [f"{row.total_ms / 1000:.3f}" for row in rows],
        ("per layer", "ms"): [_ms(row.ms_per_layer) for row in rows],
        **(beside or {}),
        ("total /", "ideal"): [f"{row.ratio_to_ideal:.3f}" for row in rows],
        ("gap in", "layer ms"): [_ms(row.gap_in_layer_ms) for row in rows],
        ("between", "layers ms"): [_ms(row.gap_between_layers_ms) for row in rows],
        ("L0-L1", "ms"): [_ms(row.l0_l1_ms) for row in rows],
        ("L0-L4", "ms"): [_ms(row.l0_l4_ms) for row in rows],
        ("asks at", "attn/ffn"): [_slashed(row.groups_requested, 1, 1) for row in rows],
        ("link busy %", "attn/ffn/all"): [_slashed(row.link_use, 100, 0) for row in rows],
        ("host", "blocked ms"): [_ms(row.host_blocked_ms) for row in rows],
        ("groups", "on device"): [str(row.groups_on_device_peak) for row in rows],
        ("depth", "layers"): [str(row.depth_used) for row in rows],
    }
    return aligned(columns)


def _ms(milliseconds: float) -> str:
    """Four digits or so; a rounding error is no time at all."""
    return f"{milliseconds + 0.0:.{1 if milliseconds >= 10 else 2}f}"


def _slashed(values: Mapping[str, float], factor: float, digits: int) -> str:
    texts = (f"{value * factor:.{digits}f}" for value in values.values())
    return "/".join(text.removesuffix(".0") for text in texts)
