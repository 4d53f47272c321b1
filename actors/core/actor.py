"""All actors share this: a place in a line, waits that are counted, and errors that name the group in hand."""

import contextlib
import functools
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from actors.core.budget import Budget, Slot
from actors.core.chained import on_host
from actors.core.channel import Receiver, Sender
from actors.core.crew import Crew
from actors.core.errors import ActorFailed, ChannelClosed, LineError
from actors.core.event import Clock, Event
from actors.core.message import Message, ended
from actors.core.operation import Operation
from actors.core.ports import Catalog
from actors.core.trace import ActorStatistics, Meter


@dataclass(slots=True)
class Wiring:
    """A line gives one to each of its actors, for one run."""

    inlet: Receiver[Message[Any]] | None
    outlet: Sender[Message[Any]] | None
    crew: Crew
    clock: Clock
    meter: Meter
    ahead: Sequence[Budget] = ()
    next_seq: int = 0
    in_hand: Message[Any] | None = None
    waits_for: tuple[str, Message[Any]] | None = None


class _Ended(Exception):
    """The actor before has ended in turn, and nothing more will come."""


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
        if wiring.inlet is not None and any(budget.residents for budget in self._budgets_from_here()):
            wiring.inlet.stand_by(self)

    @property
    def wiring(self) -> Wiring:
        """Its place in the line that runs. Raises LineError where none does."""
        if self._wiring is None:
            raise LineError(f"{self.name} is not part of a line that runs")
        return self._wiring

    @property
    def waits_for(self) -> tuple[str, Message[Any]] | None:
        """What the actor waits for, and with which message; None where it works, or waits for its next message."""
        return None if self._wiring is None else self._wiring.waits_for

    def statistics(self) -> ActorStatistics:
        """Where the actor's time went in the present or last run."""
        return ActorStatistics(0, 0.0, 0.0) if self._wiring is None else self._wiring.meter.statistics()

    async def run(self) -> None:
        """Work until nothing more comes. Whatever it raises names the group in hand (rule 7)."""
        with contextlib.suppress(_Ended):
            await self._work()

    def start(
        self, message: Message[Any] | None, work: Coroutine[Any, Any, None], watched: Event | None = None
    ) -> Event:
        """Begin work on a message, or on none, beside the actor's loop, as a child task of the line; returns its end.

        Work that only watches over an operation elsewhere names the operation's event, `watched`, whose span counts.
        """
        filler = self.name if message is None or message.at is None else message.at.filler
        named = functools.partial(self._failure_beside, message, filler)
        return Operation(self.wiring.crew, self.wiring.clock, work, named, watched)

    async def landed(self, message: Message[Any]) -> None:
        """Wait until the message's bytes have arrived (rule 4). An error names the actor that moved them."""
        if not message.event.done():
            await self.stalled("event", message, ended(message.event))
        if (failure := self._arrival_failure(message)) is not None:
            raise failure

    async def vacated(self, message: Message[Any], slot: Slot) -> None:
        """Let the actor wait until the slot's last reader is through (rule 3)."""
        if not slot.after.done():
            await self.stalled("slot", message, slot.vacated())

    async def host_is_through(self, message: Message[Any], slot: Slot) -> None:
        """Wait for what the host still does with message or slot: a device waits by itself for its own events only."""
        if on_host(message.event):
            await self.landed(message)
        if on_host(slot.after):
            await self.vacated(message, slot)

    async def stalled(self, what: str, message: Message[Any], wait: Coroutine[Any, Any, Any]) -> Any:
        """Let the actor wait for anything, and count it as `what`."""
        wiring = self.wiring
        started = wiring.clock()
        wiring.waits_for = what, message
        result = await wait
        wiring.waits_for = None
        wiring.meter.stalled(what, message, started, wiring.clock())
        return result

    async def _work(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must be a Source, Stage, Mover or Sink")

    async def _receive(self) -> Message[Any]:
        wiring = self.wiring
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
        wiring.next_seq += message.stands_for
        wiring.in_hand = message
        return message

    async def _send(self, message: Message[Any]) -> None:
        outlet = self.wiring.outlet
        if outlet is None:
            raise LineError(f"{self.name} stands last in the line, but sends messages")
        while (following := outlet.bystander) is not None and following._only_hands_on(message):
            # Waking each actor that only hands the message on would cost a turn of the event loop each.
            if not outlet.is_handed_on():
                await self.stalled("room", message, outlet.handed_on())
            if (beyond := following._pass_on(message)) is None:
                break
            message, outlet = beyond
        if not outlet.send_now(message):
            await self.stalled("room", message, outlet.send(message))

    def _budgets_from_here(self) -> Sequence[Budget]:
        """Those of the actor, and of all that come behind it."""
        return self.wiring.ahead

    def _only_hands_on(self, message: Message[Any]) -> bool:
        """Whether the actor does nothing with a message but hand it on."""
        return False

    def _pass_on(self, message: Message[Any]) -> tuple[Message[Any], Sender[Message[Any]]] | None:
        """Hand a message on in the name of this actor, which waits for one: called by the actor before it.

        Returns the message to send on and the channel to send it into; None where this actor must take it itself.
        """
        wiring = self.wiring
        if wiring.outlet is None or message.seq != wiring.next_seq or (onward := self._onward(message)) is None:
            return None
        wiring.next_seq += message.stands_for
        return onward, wiring.outlet

    def _onward(self, message: Message[Any]) -> Message[Any] | None:
        """The message to send on, where the actor has nothing to do with it; None if it has."""
        return None

    def _lies_ahead(self, message: Message[Any]) -> bool:
        """Whether the group is resident at a place further down the line: then this actor has nothing to do with it."""
        return message.at is None and any(budget.holds(message.key) for budget in self.wiring.ahead)

    def _left(self, error: BaseException | None) -> BaseException | None:
        """After `run`: pass the end of the line on, or say that it was not this actor's turn to end."""
        wiring = self.wiring
        if error is None and wiring.inlet is not None and not wiring.inlet.exhausted:
            return self._failed(LineError("its `run` has returned, though more messages come"))
        if error is None and wiring.outlet is not None:
            wiring.outlet.close()
        return error

    def _failed(self, error: BaseException) -> ActorFailed:
        """An error of the loop, with the actor's name and the group that it has in hand."""
        return self._failure(self.wiring.in_hand, error)

    @staticmethod
    def _arrival_failure(message: Message[Any]) -> ActorFailed | None:
        """Why the message's bytes did not arrive, in the name of the actor that moved them."""
        error = message.event.error
        if error is None or isinstance(error, ActorFailed):
            return error
        return ActorFailed(message.at.filler, message.layer, message.group, error)

    def _failure_beside(self, message: Message[Any] | None, filler: str, error: BaseException) -> ActorFailed:
        """An error of work on a message. If its bytes did not arrive, it names `filler`, the actor that moved them."""
        if message is not None and error is message.event.error and not isinstance(error, ActorFailed):
            return ActorFailed(filler, message.layer, message.group, error)
        return self._failure(message, error)

    def _failure(self, message: Message[Any] | None, error: BaseException) -> ActorFailed:
        if isinstance(error, ActorFailed):
            return error
        layer, group = message.key if message else (None, None)
        return ActorFailed(self.name, layer, group, error)
