"""The four shapes of an actor. Order and ownership live only here (rules 1 and 6).

A `Source` begins a line, a `Stage` looks at each message or transforms it, a `Mover` takes the next slot and moves
the bytes into it, a `Sink` ends the line and frees the slots. All that the runtime's own actors use is here for a
user's actor too.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from actors.core.actor import Actor
from actors.core.budget import Budget, Slot
from actors.core.chained import behind
from actors.core.errors import LineError
from actors.core.event import Event
from actors.core.message import READY, Message
from actors.core.operation import Operation


class Source(Actor):
    """Begins a line."""

    def plan(self) -> AsyncIterator[Message[Slot | None]]:
        """Give the messages, in compute order, `seq` counting from 0."""
        raise NotImplementedError

    async def _work(self) -> None:
        wiring = self.wiring
        async for message in self.plan():
            wiring.in_hand = message
            now = wiring.clock()
            wiring.meter.worked(message, now, now, 0.0)
            await self._send(message)


class Stage(Actor):
    """Looks at each message, checks or transforms it, and sends it on.

    It sees a resident group when its bytes move, and not when they lie where an earlier pass has put them.
    """

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        """Return the message to send on: the same group in the same slot, perhaps with another event.

        Bytes at `message.at` may be touched after `await self.landed(message)`; behind the planner there are none yet.
        Another event comes behind the message's own, so its end is not taken for the arrival of the bytes.
        """
        raise NotImplementedError

    def _only_hands_on(self, message: Message[Any]) -> bool:
        return self._lies_ahead(message) or (message.at is not None and message.at.kept is not None)

    def _onward(self, message: Message[Any]) -> Message[Any] | None:
        return message if self._only_hands_on(message) else None

    async def _work(self) -> None:
        clock, meter = self.wiring.clock, self.wiring.meter
        while True:
            message = await self._receive()
            if self._onward(message) is not None:
                await self._send(message)
                continue
            started, stalled_before = clock(), meter.stalled_seconds
            result = await self.handle(message)
            self._check(message, result)
            if result.event is not message.event:
                result = self._chain(message, result)
            meter.worked(message, started, clock(), meter.stalled_seconds - stalled_before)
            await self._send(result)

    def _chain(self, message: Message[Slot], result: Message[Slot]) -> Message[Slot]:
        slot, own = message.at, result.event
        event = behind(message, own, self.name if slot is None else slot.filler)
        if slot is not None and event is not message.event:
            slot.filled, slot.filler = event, self.name
        return result if event is own else message.moved(slot, event)

    def _check(self, message: Message[Slot], result: object) -> None:
        if not isinstance(result, Message):
            raise LineError(f"{self.name}.handle must return a Message, returned {type(result).__name__}")
        _require_event(self.name, "handle", result.event)
        same = result.key == message.key and (result.seq, result.stands_for) == (message.seq, message.stands_for)
        if result.at is not message.at or not same:
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
        return self.catalog.kind(message.key)

    async def move(self, message: Message[Any], slot: Slot) -> Event:
        """Start moving the message's bytes into `slot`; the event is done when they have landed.

        Bytes in `slot` may be overwritten only after `slot.after` (rule 3). The source slot is released for you,
        after the event and after the message's own.
        """
        raise NotImplementedError

    def found(self, message: Message[Any]) -> None:
        """Take note that the bytes of a resident group lie where they are needed, so that `move` is not asked."""

    def _budgets_from_here(self) -> Sequence[Budget]:
        own = () if self.budget is None else (self.budget,)
        return (*own, *self.wiring.ahead)

    def _only_hands_on(self, message: Message[Any]) -> bool:
        found = message.at is None and self.budget is not None and self.budget.holds(message.key)
        return found or self._lies_ahead(message)

    def _onward(self, message: Message[Any]) -> Message[Any] | None:
        if self._lies_ahead(message):
            return message
        if message.at is not None or self.budget is None or (slot := self.budget.find(message.key)) is None:
            return None
        return message.moved(slot, self._found(message, slot))

    async def _work(self) -> None:
        while True:
            message = await self._receive()
            if (onward := self._onward(message)) is not None:
                await self._send(onward)
                continue
            source = slot = message.at
            if self.budget is not None:
                slot = await self.stalled("slot", message, self.budget.acquire(self.kind(message), message.key))
            if slot is None:
                raise LineError(f"{self.name} works in place, but comes before any bytes do: give it a budget")
            event = await self._fill(message, slot)
            filler = self.name if source is None else source.filler
            if event is not message.event:
                event, filler = behind(message, event, filler), self.name
            slot.filled, slot.filler = event, filler  # an actor that hands an arrival on has not moved anything
            if source is not None and source is not slot:
                self._leave(source, slot)
            await self._send(message.moved(slot, event))

    async def _fill(self, message: Message[Any], slot: Slot) -> Event:
        """The event after which the group's bytes are in its slot."""
        if slot.kept is not None:
            return self._found(message, slot)
        event = await self.move(message, slot)
        _require_event(self.name, "move", event)
        self.wiring.meter.launched(message, (event,), slot.index)
        return event

    def _found(self, message: Message[Any], slot: Slot) -> Event:
        self.found(message)
        self.wiring.meter.launched(message, (), slot.index)
        slot.filled, slot.filler = slot.kept or READY, self.name
        return slot.filled

    def _leave(self, source: Slot, slot: Slot) -> None:
        if self.keeps_source:
            slot.source, source.filled = source, slot.filled
        else:
            source.release(after=slot.filled)


class Sink(Actor):
    """Ends a line."""

    async def take(self, message: Message[Slot]) -> None:
        """Use the message up. Calls `self.give_back(message, ...)` exactly once, or keeps it."""
        raise NotImplementedError

    def give_back(self, message: Message[Slot], ran: Sequence[Event]) -> None:
        """Give the message's slot back, to be overwritten after the last event in `ran`. Never waits.

        `ran` is what was done with the group, each after the one before; nothing, if no request needed it.
        """
        message.at.release(after=ran[-1] if ran else message.event)
        self.wiring.meter.launched(message, ran, message.at.index)

    def keep(self, messages: Sequence[Message[Slot]], ran: Sequence[Event]) -> None:
        """Keep the slots of groups that stay, and travel no more, until the line stops; `ran` is as in `give_back`."""
        first = messages[0]
        for message in messages:
            message.at.filled = ran[-1] if ran else message.at.filled
        self.wiring.meter.launched(first, ran, first.at.index, len(messages))

    async def _work(self) -> None:
        while True:
            await self.take(await self._receive())


def _require_event(actor: str, method: str, event: object) -> None:
    if event is READY or isinstance(event, Operation):
        return  # the core's own
    for name in ("done", "wait", "error", "span"):
        if not hasattr(event, name):
            raise LineError(f"{actor}.{method} must give an event, gave {event!r}; READY is one that is done")
