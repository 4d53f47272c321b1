"""Where the time goes: every actor's busy and stalled seconds, and, when asked for, each single span."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.core.message import Message
from actors.core.ports import Event


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of an actor's time, in clock seconds.

    Attributes:
        actor: whose time it is.
        what: "work", or what the actor waited for: "message" (starved), "room" (blocked), "slot", "event", "check",
            a "request" to compute for, the "result" of a pass.
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


@dataclass(frozen=True, slots=True)
class Count:
    """How many there were from a moment on: messages in the queue of an actor, or leased slots of a budget.

    `counter` is "queue <actor>" or "slots <place>".
    """

    counter: str
    at: float
    value: int


class Trace:
    """The spans and counts of a run, each in the order in which they ended; the oldest go beyond `capacity`.

    Nothing is kept while `recording` is off.
    """

    def __init__(self, capacity: int = 1_000_000, *, recording: bool = True) -> None:
        self.recording = recording
        self.spans: deque[Span] = deque(maxlen=capacity)
        self.counts: deque[Count] = deque(maxlen=capacity)

    def clear(self) -> None:
        """Forget everything."""
        self.spans.clear()
        self.counts.clear()


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
        self._record(what, message, started, ended)

    def worked(self, message: Message[Any], started: float, ended: float, waited: float) -> None:
        """Count work that the actor did itself, less what it `waited` for before it could begin."""
        self._messages += 1
        self._busy_seconds += ended - started - waited
        self._record("work", message, started + waited, ended, -1 if message.at is None else message.at.index)

    def launched(self, message: Message[Any], events: Sequence[Event], slot: int) -> None:
        """Count the operations of one message that run elsewhere, once their events tell when they ran."""
        self._messages += 1
        self._running.extend((message, event, slot, part) for part, event in enumerate(events))
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
                self._record("work", message, started, ended, slot, part)

    def _record(
        self, what: str, message: Message[Any], started: float, ended: float, slot: int = -1, part: int = 0
    ) -> None:
        if self._trace.recording and ended > started:
            span = Span(self._actor, what, message.layer, message.group, message.seq, started, ended, slot, part)
            self._trace.spans.append(span)
