"""The timings of a recorded run, group by group, so that a simulation of the same policy can be held against it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from actors.core.message import GroupKey
from actors.core.trace import Span
from pipeline.tools.simulation.timings import Order
from pipeline.tools.trace.passes import GroupTimes, group_times, work_by_actor
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK


@dataclass(slots=True)
class Replay:
    """The time of each group of each pass in a recorded run; a group that was not computed takes no time.

    Schedules are not replayed, only durations: when what starts is for the simulated actors to find out.
    """

    order: Order
    one_link: bool
    check_seconds: float
    kv_seconds: float = 0.0
    _begins: list[float] = field(default_factory=list)
    _seconds: dict[str, dict[GroupKey, list[float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, spans: Iterable[Span], order: Order, *, one_link: bool, check_seconds: float) -> "Replay":
        """Take the durations from the spans of a run of whole passes over `order`.

        A transfer that was issued while another one ran takes the time from that one's end to its own.
        """
        spans = list(spans)
        work = work_by_actor(spans)
        computed: defaultdict[GroupKey, list[float]] = defaultdict(list)
        groups = group_times(work, order)
        for position in range(max(groups) + 1):
            parts = groups[position].parts if position in groups else []
            computed[order[position % len(order)]].append(sum(ended - started for started, ended in parts))
        seconds = {actor: _one_after_the_other(work[actor]) for actor in (DISK, LINK)} | {COMPUTE: computed}
        begins = _begins(spans, groups, order, one_link)
        return cls(order, one_link, check_seconds, _begins=begins, _seconds=seconds)

    def begin_seconds(self, pass_: int) -> float:
        """Return the recorded seconds."""
        return self._begins[pass_] if pass_ < len(self._begins) else 0.0

    def seconds(self, actor: str, pass_: int, key: GroupKey) -> float:
        """Return the recorded seconds, beyond the record the last ones; no uploads where memory is one."""
        recorded = [] if actor == LINK and self.one_link else self._seconds[actor].get(key, [])
        return recorded[min(pass_, len(recorded) - 1)] if recorded else 0.0


def _one_after_the_other(transfers: Sequence[Span]) -> dict[GroupKey, list[float]]:
    seconds: defaultdict[GroupKey, list[float]] = defaultdict(list)
    until = 0.0
    for span in sorted(transfers, key=lambda span: span.seq):
        seconds[span.key].append(max(0.0, span.ended - max(span.started, until)))
        until = max(until, span.ended)
    return seconds


def _begins(spans: Iterable[Span], groups: Mapping[int, GroupTimes], order: Order, one_link: bool) -> list[float]:
    """Return how long after the end of each pass the host had the next one to compute.

    A pass ends when all is computed and its last group has come, computed or not. If the first group of the next one
    came later than the host was ready, its computation does not tell when that was, but the scheduler's wait does.
    """
    ready = [span.ended for span in spans if span.actor == COMPUTE and span.what == "request"]
    last_key = order[-1]
    last_hop = DISK if one_link else LINK
    came = [span.ended for span in spans if span.actor == last_hop and span.what == "work" and span.key == last_key]
    begins = [0.0]
    for pass_ in range(1, len(ready)):
        first = groups.get(pass_ * len(order))
        before = [groups[position].ended for position in groups if position // len(order) == pass_ - 1]
        if first is not None and before:
            ended = max(*before, *came[pass_ - 1 : pass_])
            begins.append(max(0.0, (first.started if first.arrived <= ready[pass_] else ready[pass_]) - ended))
    return begins
