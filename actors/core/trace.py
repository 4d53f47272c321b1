"""Where the time goes: every actor's busy and stalled seconds, and, when asked for, each single span."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from actors.core.message import Message
from actors.core.ports import Event


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of an actor's time, in clock seconds.

    `what` is "work", or what the actor waited for: "message" (starved), "room" (blocked), "slot", "event".
    """

    actor: str
    what: str
    layer: int
    group: str
    seq: int
    started: float
    ended: float


class Trace:
    """The spans of a run, in the order in which they ended; the oldest are forgotten beyond `capacity`."""

    def __init__(self, capacity: int = 1_000_000) -> None:
        self.spans: deque[Span] = deque(maxlen=capacity)


@dataclass(frozen=True, slots=True)
class ActorStatistics:
    """`busy` is the time in which at least one of the actor's operations ran, `stalled` its explicit waits."""

    messages: int
    busy_seconds: float
    stalled_seconds: float


class Meter:
    """Adds up one actor's time. Only the core holds meters, so actor files contain no tracing code."""

    def __init__(self, actor: str, trace: Trace | None) -> None:
        self._actor = actor
        self._trace = trace
        self._messages = 0
        self._busy_seconds = 0.0
        self._busy_until = 0.0
        self._running: deque[tuple[Message[Any], Event]] = deque()
        self.stalled_seconds = 0.0

    def stalled(self, what: str, message: Message[Any], started: float, ended: float) -> None:
        """Count a wait of the actor itself."""
        self.stalled_seconds += ended - started
        self._record(what, message, started, ended)

    def worked(self, message: Message[Any], started: float, ended: float, waited: float) -> None:
        """Count work that the actor did itself, less what it `waited` for before it could begin."""
        self._messages += 1
        self._busy_seconds += ended - started - waited
        self._record("work", message, started + waited, ended)

    def launched(self, message: Message[Any], event: Event) -> None:
        """Count an operation that runs elsewhere, once its event tells when it ran."""
        self._messages += 1
        self._running.append((message, event))
        self._settle()

    def statistics(self) -> ActorStatistics:
        """The sums up to now; operations that still run are not in them yet."""
        self._settle()
        return ActorStatistics(self._messages, self._busy_seconds, self.stalled_seconds)

    def _settle(self) -> None:
        while self._running and self._running[0][1].done():
            message, event = self._running.popleft()
            if event.span is not None:
                started, ended = event.span
                self._busy_seconds += max(0.0, ended - max(started, self._busy_until))
                self._busy_until = max(self._busy_until, ended)
                self._record("work", message, started, ended)

    def _record(self, what: str, message: Message[Any], started: float, ended: float) -> None:
        if self._trace is not None and ended > started:
            span = Span(self._actor, what, message.layer, message.group, message.seq, started, ended)
            self._trace.spans.append(span)
