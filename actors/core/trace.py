"""Where the time goes: every actor's busy and stalled seconds, and, when asked for, each single span."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from actors.core.event import Event
from actors.core.message import GroupKey, Message


class Span(NamedTuple):
    """One stretch of an actor's time, in clock seconds. A tuple, since that is the cheapest record to make.

    Attributes:
        actor: the name of the actor that spent the time.
        what: "work", or what the actor waited for: a "message" (starved), "room" (blocked), a "slot", an "event", the
            "check" of a blocking policy, the "lane" of an uploader, "companion" bytes or experts, a "request" to
            compute for, a "hop" from another line, the "result" of a pass.
        layer, group, seq: the message in hand.
        started, ended: when, by the line's clock.
        slot: index of the slot that was worked on; -1 for a wait, and where there is no slot.
        part: which micro-batch of the pass was computed; 0 for everything else.
    """

    actor: str
    what: str
    layer: int
    group: str
    seq: int
    started: float
    ended: float
    slot: int = -1
    part: int = 0

    @property
    def key(self) -> GroupKey:
        """Which group it is about, in every pass alike."""
        return self.layer, self.group


class Count(NamedTuple):
    """How many there were from the moment `at` on.

    `counter` is "queue <actor>" for the messages in the queue of an actor, "slots <budget>" for the leased slots of a
    budget, or a name that the pipeline gives to a count of its own.
    """

    counter: str
    at: float
    value: int


class Trace:
    """The spans and counts of a run, each in the order in which they ended; beyond `capacity` the oldest are `dropped`.

    Nothing is kept while `recording` is off. What is kept are bare tuples, which the garbage collector need not visit.
    """

    def __init__(self, capacity: int | None = 1_000_000, *, recording: bool = True) -> None:
        self.recording = recording
        self.dropped = 0
        self._capacity = capacity
        self._spans: deque[tuple[str, str, int, str, int, float, float, int, int]] = deque(maxlen=capacity)
        self._counts: deque[tuple[str, float, int]] = deque(maxlen=capacity)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans that were recorded up to now."""
        return tuple(map(Span._make, self._spans))

    @property
    def counts(self) -> tuple[Count, ...]:
        """The counts that were recorded up to now."""
        return tuple(map(Count._make, self._counts))

    def span(
        self,
        actor: str,
        what: str,
        message: Message[Any],
        started: float,
        ended: float,
        *,
        slot: int = -1,
        part: int = 0,
    ) -> None:
        """Record one `Span`, unless it took no time."""
        if self.recording and ended > started:
            self.dropped += len(self._spans) == self._capacity
            self._spans.append((actor, what, message.layer, message.group, message.seq, started, ended, slot, part))

    def count(self, counter: str, at: float, value: int) -> None:
        """Record one `Count`."""
        if self.recording:
            self.dropped += len(self._counts) == self._capacity
            self._counts.append((counter, at, value))

    def take(self, spans: Iterable[Span], counts: Iterable[Count], dropped: int) -> None:
        """Keep what traces of other processes have recorded, in the order in which it ended, by the clock of this one.

        So many were dropped there.
        """
        self._spans.extend(spans)
        self._counts.extend(counts)
        self.dropped += dropped

    def clear(self) -> None:
        """Forget everything."""
        self._spans.clear()
        self._counts.clear()
        self.dropped = 0


@dataclass(frozen=True, slots=True)
class ActorStatistics:
    """`busy` is the time in which at least one of the actor's operations ran, `stalled` its explicit waits."""

    messages: int
    busy_seconds: float
    stalled_seconds: float


class Meter:
    """Adds up one actor's time. Only the core holds meters, so actor files contain no tracing code."""

    def __init__(self, actor: str, trace: Trace) -> None:
        self._actor = actor
        self._trace = trace
        self._messages = 0
        self._busy_seconds = 0.0
        self._busy_until = 0.0
        self._running: deque[tuple[Message[Any], Event, int, int]] = deque()
        self.stalled_seconds = 0.0

    def stalled(self, what: str, message: Message[Any], started: float, ended: float) -> None:
        """Count a wait of the actor itself."""
        self.stalled_seconds += ended - started
        self._trace.span(self._actor, what, message, started, ended)

    @property
    def recording(self) -> bool:
        """Whether spans are kept."""
        return self._trace.recording

    def worked(self, message: Message[Any], started: float, ended: float, waited: float) -> None:
        """Count work that the actor did itself, less what it `waited` for before it could begin."""
        self._messages += 1
        self._busy_seconds += ended - started - waited
        slot = -1 if message.at is None else message.at.index
        self._trace.span(self._actor, "work", message, started + waited, ended, slot=slot)

    def launched(self, message: Message[Any], events: Sequence[Event], slot: int, groups: int = 1) -> None:
        """Count the operations of so many groups that run elsewhere, once their events tell when they ran.

        The spans are those of the first, `message`.
        """
        self._messages += groups
        for part, event in enumerate(events):
            self._running.append((message, event, slot, part))
        self._settle()

    def statistics(self) -> ActorStatistics:
        """The sums up to now; operations that still run are not in them yet."""
        self._settle()
        return ActorStatistics(self._messages, self._busy_seconds, self.stalled_seconds)

    def _settle(self) -> None:
        while self._running and self._running[0][1].done():
            message, event, slot, part = self._running.popleft()
            if event.span is not None:
                started, ended = event.span
                self._busy_seconds += max(0.0, ended - max(started, self._busy_until))
                self._busy_until = max(self._busy_until, ended)
                self._trace.span(self._actor, "work", message, started, ended, slot=slot, part=part)
