"""What a pass takes once it is steady: durations to simulate with, and the seconds of recorded or simulated passes."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from actors.core.message import GroupKey
from actors.core.trace import Span
from pipeline.engine.policies import POLICIES
from pipeline.tools.bench.candidates import Candidate
from pipeline.tools.simulation.replay import Replay
from pipeline.tools.simulation.sim_line import simulate
from pipeline.tools.simulation.timings import Order
from pipeline.tools.trace.passes import group_times, work_by_actor

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
        """Medians over some recorded passes.

        A pass's reading is shared out by bytes: groups are read beside each other, so what each took says little.
        """
        order = replay.order
        computes = {key: statistics.median(replay.compute_seconds(pass_, key) for pass_ in passes) for key in order}
        uploads = {key: statistics.median(replay.upload_seconds(pass_, key) for pass_ in passes) for key in order}
        read, uploaded, computed = (
            statistics.median(sum(seconds(pass_, key) for key in order) for pass_ in passes)
            for seconds in (replay.read_seconds, replay.upload_seconds, replay.compute_seconds)
        )
        return cls(
            order=order,
            one_link=replay.one_link,
            begin=statistics.median(map(replay.begin_seconds, passes)),
            reads=_shared_out(read, {key: float(group_bytes[key]) for key in order}),
            uploads=_shared_out(uploaded, uploads),
            computes=_shared_out(computed, computes),
        )

    def with_reads(self, factor: float) -> "SteadyTimings":
        """The same with a disk that takes `factor` times as long."""
        return dataclasses.replace(self, reads={key: seconds * factor for key, seconds in self.reads.items()})

    @property
    def resources(self) -> dict[str, float]:
        """For how long a pass keeps each resource busy."""
        uploads = {} if self.one_link else {"H2D": sum(self.uploads.values())}
        return {"disk": sum(self.reads.values()), **uploads, "compute": sum(self.computes.values())}

    def begin_seconds(self, pass_: int) -> float:
        """The same before every pass."""
        return self.begin

    def read_seconds(self, pass_: int, key: GroupKey) -> float:
        """The same in every pass."""
        return self.reads[key]

    def upload_seconds(self, pass_: int, key: GroupKey) -> float:
        """The same in every pass."""
        return self.uploads[key]

    def compute_seconds(self, pass_: int, key: GroupKey) -> float:
        """The same in every pass."""
        return self.computes[key]


def steady_seconds(spans: Iterable[Span], order: Order) -> list[float]:
    """From the first computation of a pass to that of the next, in seconds, for every pass but the first and the last.

    The first profits from what was read before it began. Starts, because not every pass computes its last groups.
    """
    groups = group_times(work_by_actor(spans), order)
    starts = [groups[position].started for position in range(0, max(groups) + 1, len(order))]
    return [after - before for before, after in itertools.pairwise(starts)][1:]


def simulated_seconds(timings: SteadyTimings, candidate: Candidate) -> float:
    """Seconds per pass, on virtual time, under the policy backpressure. Not on a running loop: use a thread."""
    run = simulate(
        timings,
        POLICIES["backpressure"],
        passes=SIMULATED_PASSES,
        gpu_groups=candidate.gpu_groups,
        host_groups=candidate.host_groups,
        queue=candidate.queue,
    )
    return statistics.fmean(steady_seconds(run.trace.spans, timings.order))


def simulated_grid(timings: SteadyTimings, candidates: Sequence[Candidate]) -> dict[Candidate, float]:
    """All of them."""
    return {candidate: simulated_seconds(timings, candidate) for candidate in candidates}


def _shared_out(total: float, weights: Mapping[GroupKey, float]) -> dict[GroupKey, float]:
    whole = sum(weights.values())
    return {key: total * weight / whole if whole else 0.0 for key, weight in weights.items()}
