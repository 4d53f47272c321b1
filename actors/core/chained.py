"""A chained event: the end of an actor's own work on a message, but never before its bytes have arrived (rule 4)."""

from collections.abc import Sequence
from typing import Any, TypeVar

from actors.core.errors import ActorFailed
from actors.core.event import Event
from actors.core.message import READY, Message, ended
from actors.core.operation import Operation

Given = TypeVar("Given", bound=Event | None)


class Chained:
    """Done when the message's event and `own` are; an error of the bytes' arrival names `filler`, which moved them."""

    def __init__(self, message: Message[Any], own: Event, filler: str) -> None:
        self._message = message
        self._own = own
        self._filler = filler

    @property
    def parts(self) -> Sequence[Event]:
        """The events that a device waits for in place of this one, since it knows only its own."""
        return parts(self._message.event, self._own)

    @property
    def error(self) -> BaseException | None:
        """Why the group did not arrive, or why the own work failed."""
        error = self._message.event.error
        if error is None or isinstance(error, ActorFailed):
            return error or self._own.error
        return ActorFailed(self._filler, self._message.layer, self._message.group, error)

    @property
    def span(self) -> tuple[float, float] | None:
        """When the own work ran."""
        return self._own.span

    def done(self) -> bool:
        """Whether both have ended."""
        return self._message.event.done() and self._own.done()

    async def wait(self) -> None:
        """Wait for both; raises the error."""
        await ended(self._message.event)
        await ended(self._own)
        if (error := self.error) is not None:
            raise error


def behind(message: Message[Any], own: Event, filler: str) -> Event:
    """An event that is done when the message's event and `own`, that of work on the message, are both done."""
    arrival = message.event
    if arrival is READY or own is arrival or (arrival.done() and arrival.error is None):
        return own
    if own.done() and own.error is None:
        return arrival
    return Chained(message, own, filler)


def parts(*events: Given) -> Sequence[Given | Event]:
    """These events, with each chained one replaced by the events that a device waits for in its place."""
    if Chained not in map(type, events):
        return events
    return [part for event in events for part in (event.parts if isinstance(event, Chained) else (event,))]


def on_host(event: Event) -> bool:
    """Whether a coroutine is what ends it, which no device can wait for."""
    return isinstance(event, Operation) or (isinstance(event, Chained) and any(map(on_host, event.parts)))
