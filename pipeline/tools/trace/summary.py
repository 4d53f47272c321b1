"""A run in figures: how long each actor was busy, what bounds the run, what the device waited for."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from actors.core.trace import Span
from pipeline.tools.trace.gaps import CAUSES, NEGLIGIBLE_SECONDS, Gap, find_gaps
from pipeline.tools.trace.intervals import Interval, total_seconds, union, within, without
from pipeline.tools.trace.journeys import Journeys, computations, pass_starts, times_of
from pipeline.tools.trace.recording import (
    COMPUTE,
    DISK,
    EXPERT_COMPUTE,
    EXPERT_CPU,
    EXPERT_DISK,
    EXPERT_IN,
    HANDING_ON,
    KV_DISK,
    KV_IN,
    KV_OUT,
    LINK,
    Recording,
)
from pipeline.tools.trace.sections import SectionNumber, enumerated, in_sections, of_section, plain_names

NAMES = {
    DISK: "disk",
    LINK: "H2D",
    COMPUTE: "compute",
    KV_DISK: "KV disk",
    KV_IN: "KV in",
    KV_OUT: "KV out",
    EXPERT_DISK: "experts disk",
    EXPERT_IN: "experts H2D",
    EXPERT_CPU: "experts CPU",
    EXPERT_COMPUTE: "experts compute",
}
SPOKEN = {"disk": "the disk", "H2D": "the copies to the device", "compute": "computing"}
"""The names of those of the weights in a sentence."""
BOUND, CLOSE = 0.85, 0.02
"""From this share of the time on, a resource counts as what bounds the run; others may be that close to the largest."""


def resources(recording: Recording) -> dict[str, str]:
    """The actors that take time of a disk, link, device or stage, section by section in line order, and what people
    call them.
    """
    worked = {span.actor for span in recording.spans if span.what == "work"}
    names = plain_names(actor for actor in recording.actors if actor in worked)
    return {
        actor: of_section(NAMES.get(plain, plain), section)
        for actor, (plain, section) in sorted(names.items(), key=lambda item: item[1][1] or 0)
        if plain not in HANDING_ON
    }


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
    if plain_names([actor])[actor][0] == LINK:
        journeys = Journeys(spans)
        for copy in (span for span in spans if span.actor == actor and span.what == "work"):
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


def bound_sentence(shares: Mapping[str, float]) -> str:
    """Say what binds, from the busy share of each actor.

    Sections compute in turn, so computing binds where it does in all of them together.
    """
    names = plain_names(shares)
    computing = [actor for actor, (plain, _) in names.items() if plain == COMPUTE]
    if len(computing) > 1:
        together = min(1.0, sum(shares[actor] for actor in computing))
        shares = {actor: share for actor, share in shares.items() if actor not in computing} | {COMPUTE: together}
        names[COMPUTE] = (COMPUTE, None)
    if bound := bound_by(shares):
        places = defaultdict[str, list[SectionNumber]](list)
        for plain, section in (names[actor] for actor in bound):
            places[_spoken(plain)].append(section)
        listed = enumerated(in_sections(name, sections) for name, sections in places.items())
        return f"Bound by {listed}: busy {shares[bound[0]]:.0%} of the time."
    most = sorted(shares, key=lambda actor: -round(shares[actor], 2))[:2]
    called = (in_sections(NAMES.get(names[actor][0], names[actor][0]), [names[actor][1]]) for actor in most)
    busy = ", ".join(f"{name} busy {shares[actor]:.0%}" for name, actor in zip(called, most, strict=True))
    return f"Bound by no single resource: {busy} of the time."


def _spoken(actor: str) -> str:
    name = NAMES.get(actor, actor)
    return SPOKEN.get(name, name)


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
        waited_in: by section and cause, the seconds in which no device computed, before a group of that section. Those
            in which the line stood still are left out.
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
    waited_in: Mapping[tuple[SectionNumber, str], float]
    passes: int
    groups: int
    all_stay: bool

    @property
    def waited(self) -> Mapping[str, float]:
        """The seconds by cause, in the order of the causes."""
        return {cause: sum(seconds for (_, of), seconds in self.waited_in.items() if of == cause) for cause in CAUSES}

    @property
    def waited_seconds(self) -> float:
        """The seconds for which the device waited."""
        return sum(self.waited_in.values())

    @property
    def devices(self) -> str:
        """Who waited, for a sentence."""
        return "the device" if (None, "launch") in self.waited_in else "all devices"

    @property
    def headline(self) -> str:
        """Two sentences on what bounds the run and what the device waited for; a third where nothing moves."""
        if not self.groups:
            return "Nothing was computed in this trace."
        return f"{bound_sentence(self.shares)} {self._waiting()}{STILL * self.all_stay}"

    def _waiting(self) -> str:
        share = self.waited_seconds / self.seconds
        who = self.devices.capitalize()
        if share < 0.001:
            return f"{who} {'waited for less than 0.1% of it' if share else 'never waited'}."
        section, cause = max(self.waited_in, key=self.waited_in.__getitem__)
        of_it = self.waited_in[section, cause] / self.waited_seconds
        amount = "all" if of_it > 0.995 else f"{of_it:.0%}"
        waited = f"{duration(self.waited_seconds)} ({share:.1%})"
        return f"{who} waited {waited}, {amount} of that for {in_sections(CAUSES[cause][0], [section])}."


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
    sections = dict.fromkeys(section for _, section in plain_names(recording.actors).values())
    waited = {(section, cause): 0.0 for section in sorted(sections, key=lambda one: one or 0) for cause in CAUSES}
    for gap in gaps:
        for piece in gap.pieces:
            stood_still = total_seconds(within(still, piece.started, piece.ended)) if piece.cause == "start" else 0.0
            waited[gap.section, piece.cause] += piece.ended - piece.started - stood_still
    return Summary(
        started,
        ended,
        seconds,
        total_seconds(still),
        {actor: busy[actor] / seconds for actor in names},
        {actor: total_seconds(times) / seconds for actor, times in held_back.items()},
        names,
        gaps,
        {key: seconds if seconds > NEGLIGIBLE_SECONDS else 0.0 for key, seconds in waited.items()},
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
