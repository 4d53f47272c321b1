"""Who moves it: the four shapes of an actor. Order and ownership live only here (rules 1 and 6).

A `Source` begins a line, a `Stage` looks at each message or transforms it, a `Mover` takes the next slot and moves
the bytes into it, a `Sink` ends the line and frees the slots. All that the runtime's own actors use is here for a
user's actor too.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.core.budget import Budget, Slot
from actors.core.channel import Receiver, Sender
from actors.core.errors import ActorFailed, ChannelClosed, LineError
from actors.core.message import Message, ended
from actors.core.operation import Operation, cancelled_from_outside
from actors.core.ports import Catalog, Clock, Event
from actors.core.trace import ActorStatistics, Meter


@dataclass(slots=True)
class Wiring:
    """What a line gives each of its actors for one run."""

    inlet: Receiver[Message[Any]] | None
    outlet: Sender[Message[Any]] | None
    tasks: asyncio.TaskGroup
    started: "set[asyncio.Task[None]]"
    clock: Clock
    meter: Meter
    ahead: Sequence[Budget] = ()
    next_seq: int = 0
    in_hand: Message[Any] | None = None


class _Ended(Exception):
    """A neighbour has closed its end of the channel."""


class Actor:
    """One worker of a line. It has no constructor of its own, so that a user's actor need not call one."""

    name: str
    catalog: Catalog
    at_work: bool = False
    _wiring: Wiring | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def wire(self, wiring: Wiring) -> None:
        """Join the actor to its neighbours for one run."""
        self._wiring = wiring

    def statistics(self) -> ActorStatistics:
        """Where the actor's time went in the present or last run."""
        return ActorStatistics(0, 0.0, 0.0) if self._wiring is None else self._wiring.meter.statistics()

    async def run(self) -> None:
        """Work until nothing more comes or nobody takes any more. An error names the group in hand (rule 7)."""
        wiring = self._wired
        try:
            with contextlib.suppress(_Ended):
                await self._work()
        except ActorFailed:
            raise
        except asyncio.CancelledError:
            if cancelled_from_outside():
                raise
            error = RuntimeError("the actor ended itself by raising CancelledError")
            raise self._failure(wiring.in_hand, error) from error
        except Exception as error:
            raise self._failure(wiring.in_hand, error) from error
        finally:
            if wiring.outlet is not None:
                wiring.outlet.close()
            if wiring.inlet is not None:
                wiring.inlet.close()

    def start(self, message: Message[Any], work: Coroutine[Any, Any, None], watched: Event | None = None) -> Event:
        """Begin work on a message beside the actor's loop, as a child task of the line; its event tells its end.

        Work that only watches over an operation elsewhere names the operation's event, `watched`, whose span counts.
        """
        operation = Operation(self._wired.clock, watched)
        task = operation.begin(self._wired.tasks, work, lambda error: self._failure(message, error))
        self._wired.started.add(task)
        task.add_done_callback(self._wired.started.discard)
        return operation

    async def landed(self, message: Message[Any]) -> None:
        """Let the actor wait until the message's bytes have arrived (rule 4). Fails in the name of who moved them."""
        if not message.event.done():
            await self.stalled("event", message, ended(message.event))
        if (error := message.event.error) is not None:
            if isinstance(error, ActorFailed):
                raise error
            raise ActorFailed(message.at.filler, message.layer, message.group, error)

    async def vacated(self, message: Message[Any], slot: Slot) -> None:
        """Let the actor wait until the slot's last reader is through (rule 3)."""
        if not slot.after.done():
            await self.stalled("slot", message, slot.vacated())

    async def host_is_through(self, message: Message[Any], slot: Slot) -> None:
        """Let the actor wait for what the host still does with the message or the slot.

        A device waits for its own events by itself (rule 4), but cannot wait for a coroutine.
        """
        if isinstance(message.event, Operation):
            await self.landed(message)
        if isinstance(slot.after, Operation):
            await self.vacated(message, slot)

    async def stalled(self, what: str, message: Message[Any], wait: Coroutine[Any, Any, Any]) -> Any:
        """Let the actor wait for anything, and count it as `what`."""
        clock, meter = self._wired.clock, self._wired.meter
        started = clock()
        result = await wait
        meter.stalled(what, message, started, clock())
        return result

    @property
    def _wired(self) -> Wiring:
        if self._wiring is None:
            raise LineError(f"{self.name} is not part of a line that runs")
        return self._wiring

    async def _work(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must be a Source, Stage, Mover or Sink")

    async def _receive(self) -> Message[Any]:
        wiring = self._wired
        if wiring.inlet is None:
            raise LineError(f"{self.name} stands first in the line, but takes messages")
        started = wiring.clock()
        try:
            message = await wiring.inlet.receive()
        except ChannelClosed as closed:
            raise _Ended from closed
        wiring.meter.stalled("message", message, started, wiring.clock())
        if message.seq != wiring.next_seq:
            raise LineError(f"rule 1: {self.name} expected seq {wiring.next_seq}, received seq {message.seq}")
        wiring.next_seq += 1
        wiring.in_hand = message
        return message

    async def _send(self, message: Message[Any]) -> None:
        if self._wired.outlet is None:
            raise LineError(f"{self.name} stands last in the line, but sends messages")
        try:
            await self.stalled("room", message, self._wired.outlet.send(message))
        except ChannelClosed as closed:
            raise _Ended from closed

    def _lies_ahead(self, message: Message[Any]) -> bool:
        """Whether the bytes are at a place further down the line, for good: then there is nothing to do here."""
        group = (message.layer, message.group)
        return message.at is None and any(budget.holds(group) for budget in self._wired.ahead)

    def _failure(self, message: Message[Any] | None, error: Exception) -> ActorFailed:
        if isinstance(error, ActorFailed):
            return error
        layer, group = (message.layer, message.group) if message else (None, None)
        return ActorFailed(self.name, layer, group, error)


class Source(Actor):
    """Begins a line."""

    def plan(self) -> AsyncIterator[Message[None]]:
        """Give the messages, in compute order, `seq` counting from 0."""
        raise NotImplementedError

    async def _work(self) -> None:
        async for message in self.plan():
            self._wired.in_hand = message
            now = self._wired.clock()
            self._wired.meter.worked(message, now, now, 0.0)
            await self._send(message)


class Stage(Actor):
    """Looks at each message, checks or transforms it, and sends it on.

    It sees a resident group when its bytes move, and not when they lie where an earlier pass has put them.
    """

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        """Return the message to send on: the same group in the same slot, perhaps with another event.

        Bytes at `message.at` may be touched after `await self.landed(message)`; behind the planner there are none yet.
        """
        raise NotImplementedError

    async def _work(self) -> None:
        clock, meter = self._wired.clock, self._wired.meter
        while True:
            message = await self._receive()
            if self._lies_ahead(message) or (message.at is not None and message.at.landed is not None):
                await self._send(message)
                continue
            started, stalled_before = clock(), meter.stalled_seconds
            result = await self.handle(message)
            self._check(message, result)
            if message.at is not None and result.event is not message.event:
                message.at.filled, message.at.filler = result.event, self.name
            meter.worked(message, started, clock(), meter.stalled_seconds - stalled_before)
            await self._send(result)

    def _check(self, message: Message[Slot], result: object) -> None:
        if not isinstance(result, Message):
            raise LineError(f"{self.name}.handle must return a Message, returned {type(result).__name__}")
        _require_event(self.name, "handle", result.event)
        if result.at is not message.at or replace(result, event=message.event) != message:
            raise LineError(f"rule 1: {self.name}.handle may change only the event: took {message}, returned {result}")


class Mover(Actor):
    """Takes the next slot of its budget and moves the bytes into it. Without a budget it works in place.

    With `keeps_source` the slot that they came from is not released, but goes along as `Slot.source`. A resident group
    has a slot of its own; what is there already is not moved again.
    """

    budget: Budget | None = None
    keeps_source: bool = False

    def kind(self, message: Message[Any]) -> str:
        """The kind of slot that the message needs."""
        return self.catalog.kind(message.layer, message.group)

    async def move(self, message: Message[Any], slot: Slot) -> Event:
        """Start moving the message's bytes into `slot`; the event is done when they have landed.

        Bytes in `slot` may be overwritten only after `slot.after` (rule 3). The source slot is released for you,
        after the event.
        """
        raise NotImplementedError

    def found(self, message: Message[Any]) -> None:
        """Take note that the bytes of a resident group lie where they are needed, so that `move` is not asked."""

    async def _work(self) -> None:
        while True:
            message = await self._receive()
            if self._lies_ahead(message):
                await self._send(message)
                continue
            source = message.at
            slot = source if self.budget is None else await self._acquire(self.budget, message)
            if slot is None:
                raise LineError(f"{self.name} works in place, but comes before any bytes do: give it a budget")
            event = await self._fill(message, slot)
            slot.filled, slot.filler = event, self.name
            if source is not None and source is not slot:
                self._leave(source, slot)
            await self._send(replace(message, at=slot, event=event))

    async def _acquire(self, budget: Budget, message: Message[Any]) -> Slot:
        acquiring = budget.acquire(self.kind(message), (message.layer, message.group))
        slot: Slot = await self.stalled("slot", message, acquiring)
        return slot

    async def _fill(self, message: Message[Any], slot: Slot) -> Event:
        """The event after which the group's bytes are in its slot."""
        if slot.landed is not None:
            self.found(message)
            self._wired.meter.launched(message, (), slot.index)
            return slot.landed
        event = await self.move(message, slot)
        _require_event(self.name, "move", event)
        self._wired.meter.launched(message, (event,), slot.index)
        return event

    def _leave(self, source: Slot, slot: Slot) -> None:
        if self.keeps_source:
            slot.source, source.filled = source, slot.filled
        else:
            source.release(after=slot.filled)


class Sink(Actor):
    """Ends a line."""

    async def take(self, message: Message[Slot]) -> None:
        """Use the message up. Calls `self.free(message, ...)` exactly once."""
        raise NotImplementedError

    def free(self, message: Message[Slot], ran: Sequence[Event]) -> None:
        """Give the message's slot back, to be overwritten after the last event in `ran`. Never waits.

        `ran` is what was done with the group, each after the one before; nothing, if nobody needed it.
        """
        message.at.release(after=ran[-1] if ran else message.event)
        self._wired.meter.launched(message, ran, message.at.index)

    async def _work(self) -> None:
        while True:
            await self.take(await self._receive())


def _require_event(actor: str, method: str, event: object) -> None:
    if not all(hasattr(event, name) for name in ("done", "wait", "error", "span")):
        raise LineError(f"{actor}.{method} must give an event, gave {event!r}; READY is one that is done")
