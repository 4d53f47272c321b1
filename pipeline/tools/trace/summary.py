"""A run in figures: how long each actor was busy, what bounds the run, what the device waited for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from actors.core.trace import Span
from pipeline.tools.trace.gaps import CAUSES, NEGLIGIBLE_SECONDS, Gap, find_gaps
from pipeline.tools.trace.intervals import Interval, total_seconds, union, within, without
from pipeline.tools.trace.journeys import Journeys, computations, pass_starts, times_of
from pipeline.tools.trace.recording import (
    COMPUTE,
    DISK,
    EXPERT_DISK,
    EXPERT_IN,
    HANDING_ON,
    KV_DISK,
    KV_IN,
    KV_OUT,
    LINK,
    Recording,
)

NAMES = {
    DISK: "disk",
    LINK: "H2D",
    COMPUTE: "compute",
    KV_DISK: "KV disk",
    KV_IN: "KV in",
    KV_OUT: "KV out",
    EXPERT_DISK: "experts disk",
    EXPERT_IN: "experts H2D",
}
SPOKEN = {"disk": "the disk", "H2D": "the copies to the device", "compute": "computing"}
"""The names of those of the weights in a sentence."""
BOUND, CLOSE = 0.85, 0.02
"""From this share of the time on, a resource counts as what bounds the run; others may be that close to the largest."""


def resources(recording: Recording) -> dict[str, str]:
    """The actors that take time of a disk, link, device or stage, in line order, and what people call them."""
    worked = {span.actor for span in recording.spans if span.what == "work"}
    return {actor: NAMES.get(actor, actor) for actor in recording.actors if actor in worked and actor not in HANDING_ON}


def busy_seconds(spans: Sequence[Span], started: float, ended: float) -> dict[str, float]:
    """Return for how long, between two moments, an operation of each actor ran; overlapping ones count once."""
    actors = dict.fromkeys(span.actor for span in spans)
    return {actor: total_seconds(within(times_of(spans, actor, "work"), started, ended)) for actor in actors}


def held_back_times(spans: Sequence[Span], actor: str) -> list[Interval]:
    """Return when an actor did nothing because those behind it had no slot or no room.

    An uploader may hand a copy to the device before the copy's slot is free; then a group that has been read stands
    before a link that does nothing.
    """
    held = times_of(spans, actor, "slot", "room")
    if actor == LINK:
        journeys = Journeys(spans)
        for copy in (span for span in spans if span.actor == LINK and span.what == "work"):
            read = journeys.before(DISK, copy)
            if read is not None and read.ended < copy.started:
                held.append((read.ended, copy.started))
    return without(union(held), times_of(spans, actor, "work"))


def standstill(spans: Sequence[Span], gaps: Iterable[Gap]) -> list[Interval]:
    """Return when there was no request and no actor had work left: such times say nothing about any resource."""
    no_request = [(piece.started, piece.ended) for gap in gaps for piece in gap.pieces if piece.cause == "start"]
    return without(no_request, union((span.started, span.ended) for span in spans if span.what == "work"))


def bound_by(shares: Mapping[str, float]) -> tuple[str, ...]:
    """The actor with the largest busy share, and those that come close; none if that does not explain the time."""
    most = max(shares.values(), default=0.0)
    return tuple(actor for actor, share in shares.items() if most >= BOUND and share > most - CLOSE)


def bound_sentence(shares: Mapping[str, float], names: Mapping[str, str]) -> str:
    """Say what binds, from the busy share of each actor and what people call it."""
    if bound := bound_by(shares):
        spoken = [SPOKEN.get(names[actor], names[actor]) for actor in bound]
        listed = " and ".join(filter(None, [", ".join(spoken[:-1]), spoken[-1]]))
        return f"Bound by {listed}: busy {shares[bound[0]]:.0%} of the time."
    most = sorted(shares, key=lambda actor: -round(shares[actor], 2))[:2]
    busy = ", ".join(f"{names[actor]} busy {shares[actor]:.0%}" for actor in most)
    return f"Bound by no single resource: {busy} of the time."


@dataclass(frozen=True)
class Summary:
    """The figures of a run, up to its last computation.

    Attributes:
        started, ended: the first span, or the first request if the line stood still before it; the last computation.
        seconds: the time between them in which the line did not stand still.
        still_seconds: the time in which it did, for want of a request.
        shares, held_back: by actor, the share of `seconds` in which it was busy, or idle because of those behind it.
        names: what people call those actors.
        gaps: the gaps in the computing.
        waited: by cause, the seconds in which the device computed nothing, though the line did not stand still.
        passes, groups: how many were computed, also in part.
        all_stay: whether no group moves, once all have been brought to where they stay.
    """

    started: float
    ended: float
    seconds: float
    still_seconds: float
    shares: Mapping[str, float]
    held_back: Mapping[str, float]
    names: Mapping[str, str]
    gaps: Sequence[Gap]
    waited: Mapping[str, float]
    passes: int
    groups: int
    all_stay: bool

    @property
    def waited_seconds(self) -> float:
        """The seconds for which the device waited."""
        return sum(self.waited.values())

    @property
    def headline(self) -> str:
        """Two sentences on what bounds the run and what the device waited for; a third where nothing moves."""
        if not self.groups:
            return "Nothing was computed in this trace."
        return f"{bound_sentence(self.shares, self.names)} {self._waiting()}{STILL * self.all_stay}"

    def _waiting(self) -> str:
        share = self.waited_seconds / self.seconds
        if share < 0.001:
            return f"The device {'waited for less than 0.1% of it' if share else 'never waited'}."
        cause = max(self.waited, key=self.waited.__getitem__)
        of_it = self.waited[cause] / self.waited_seconds
        amount = "all" if of_it > 0.995 else f"{of_it:.0%}"
        waited = f"{duration(self.waited_seconds)} ({share:.1%})"
        return f"The device waited {waited}, {amount} of that for {CAUSES[cause][0]}."


STILL = " All weight groups stay in memory, so none of them moves; residency=False lets them."


def summarize(recording: Recording) -> Summary:
    """Measure a run. A trace without computations is measured from its first span to its last."""
    spans, names = recording.spans, resources(recording)
    computed, gaps = computations(spans), find_gaps(spans)
    started = min((span.started for span in spans), default=0.0)
    ended = max((span.ended for span in computed or spans), default=0.0)
    still = standstill(spans, gaps)
    if gaps and gaps[0].started == started and within(still, started, gaps[0].ended):
        started = gaps[0].ended
        gaps = gaps[1:]
        still = within(still, started, ended)
    seconds = max(ended - started - total_seconds(still), 1e-9)
    busy = busy_seconds(spans, started, ended)
    held_back = {actor: within(without(held_back_times(spans, actor), still), started, ended) for actor in names}
    waited = dict.fromkeys(CAUSES, 0.0)
    for gap in gaps:
        for piece in gap.pieces:
            waited[piece.cause] += piece.ended - piece.started
    waited["start"] -= total_seconds(still)
    waited = {cause: waited[cause] if waited[cause] > NEGLIGIBLE_SECONDS else 0.0 for cause in CAUSES}
    return Summary(
        started,
        ended,
        seconds,
        total_seconds(still),
        {actor: busy[actor] / seconds for actor in names},
        {actor: total_seconds(times) / seconds for actor, times in held_back.items()},
        names,
        gaps,
        waited,
        len(pass_starts(computed)),
        sum(not span.part for span in computed),
        recording.configuration.get("moving_groups") == 0,
    )


def duration(seconds: float) -> str:
    """A duration for people: three digits or four."""
    if seconds >= 10:
        return f"{seconds:,.1f} s"
    value = seconds * 1000
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} ms"
