"""Steady passes: durations to simulate with, and the seconds of recorded or simulated passes."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from actors.core.message import GroupKey
from actors.core.trace import Span
from pipeline.engine.policies import POLICIES
from pipeline.tools.bench.candidates import Candidate
from pipeline.tools.simulation.replay import Replay
from pipeline.tools.simulation.sim_line import simulate
from pipeline.tools.simulation.timings import Order
from pipeline.tools.trace.passes import group_times, work_by_actor
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK

SIMULATED_PASSES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyTimings:
    """Every pass alike: seconds by layer and group, and `begin` between two passes."""

    order: Order
    one_link: bool
    begin: float
    reads: Mapping[GroupKey, float]
    uploads: Mapping[GroupKey, float]
    computes: Mapping[GroupKey, float]
    check_seconds: float = 0.0
    kv_seconds: float = 0.0

    @classmethod
    def of(cls, replay: Replay, passes: range, group_bytes: Mapping[GroupKey, int]) -> "SteadyTimings":
        """Medians over recorded passes; reading is shared out by bytes, since groups are read beside each other."""
        order = replay.order

        def shared_out(actor: str, weights: Mapping[GroupKey, float] | None = None) -> dict[GroupKey, float]:
            whole = median(sum(replay.seconds(actor, pass_, key) for key in order) for pass_ in passes)
            if weights is None:
                weights = {key: median(replay.seconds(actor, pass_, key) for pass_ in passes) for key in order}
            weight = sum(weights.values())
            return {key: whole * weights[key] / weight if weight else 0.0 for key in order}

        return cls(
            order=order,
            one_link=replay.one_link,
            begin=median(map(replay.begin_seconds, passes)),
            reads=shared_out(DISK, {key: float(group_bytes[key]) for key in order}),
            uploads=shared_out(LINK),
            computes=shared_out(COMPUTE),
        )

    def with_reads(self, factor: float) -> "SteadyTimings":
        """Return the timings with a disk that takes `factor` times as long."""
        return dataclasses.replace(self, reads={key: seconds * factor for key, seconds in self.reads.items()})

    @property
    def resources(self) -> dict[str, float]:
        """The seconds for which a pass keeps each resource busy."""
        uploads = {} if self.one_link else {"H2D": sum(self.uploads.values())}
        return {"disk": sum(self.reads.values()), **uploads, "compute": sum(self.computes.values())}

    def begin_seconds(self, pass_: int) -> float:
        """Return the same seconds for every pass."""
        return self.begin

    def seconds(self, actor: str, pass_: int, key: GroupKey) -> float:
        """Return the same seconds for every pass."""
        return {DISK: self.reads, LINK: self.uploads, COMPUTE: self.computes}[actor][key]


def steady_seconds(spans: Iterable[Span], order: Order) -> list[float]:
    """Return the seconds from the start of a pass to that of the next, for every pass but the first and the last.

    The first profits from what was read before it began. Starts, because not every pass computes its last groups.
    """
    groups = group_times(work_by_actor(spans), order)
    starts = [groups[position].started for position in range(0, max(groups) + 1, len(order))]
    return [after - before for before, after in itertools.pairwise(starts)][1:]


def simulated_passes(timings: SteadyTimings, passes: int, **line: Any) -> list[float]:
    """The `steady_seconds` of passes on virtual time, under the policy backpressure; `line` as `simulate` takes it."""
    run = simulate(timings, POLICIES["backpressure"], passes=passes, **line)
    return steady_seconds(run.trace.spans, timings.order)


def simulated_grid(timings: SteadyTimings, candidates: Sequence[Candidate]) -> dict[Candidate, float]:
    """Seconds per pass by candidate, simulated. Not on a running loop: use a thread."""
    return {one: fmean(simulated_passes(timings, SIMULATED_PASSES, **one.groups_and_queue)) for one in candidates}
