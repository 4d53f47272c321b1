"""A channel: a bounded queue between two actors, with one sending and one receiving end.

Both ends keep trio's contract: an operation that raises, also through cancellation, did not happen. A closed sender
lets the receiver drain what is left.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from actors.core.errors import ChannelClosed, LineError
from actors.core.event import Clock
from actors.core.trace import Trace
from actors.core.turns import Turns

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """The counters of a channel: `starved` is its receiver waiting, `blocked` its sender waiting."""

    capacity: int
    depth: int
    peak: int
    sent: int
    starved_seconds: float
    blocked_seconds: float


class _Shared(Generic[Item]):
    def __init__(self, name: str, capacity: int, clock: Clock, trace: Trace) -> None:
        self.name = name
        self.capacity = capacity
        self._clock = clock
        self._trace = trace
        self._counter = f"queue {name}"
        self.items: deque[Item] = deque()
        self.peak = 0
        self.sent = 0
        self.sender_closed = False
        self.senders = Turns(clock)
        self.receivers = Turns(clock)
        self.receiving = False
        self.bystander: Any = None

    def is_handed_on(self) -> bool:
        return not self.items and (self.receiving or self.sender_closed)

    def has_room(self) -> bool:
        return len(self.items) < self.capacity

    def has_item(self) -> bool:
        return bool(self.items) or self.sender_closed

    def count(self) -> None:
        if self._trace.recording:
            self._trace.count(self._counter, self._clock(), len(self.items))


class _End(Generic[Item]):
    def __init__(self, shared: _Shared[Item]) -> None:
        self._shared = shared

    @property
    def name(self) -> str:
        """The channel's: that of the actor that receives."""
        return self._shared.name

    def statistics(self) -> ChannelStatistics:
        """The channel's counters, the same from both ends."""
        shared = self._shared
        starved, blocked = shared.receivers.waited_seconds, shared.senders.waited_seconds
        return ChannelStatistics(shared.capacity, len(shared.items), shared.peak, shared.sent, starved, blocked)


class Sender(_End[Item]):
    """The end that gives."""

    async def send(self, item: Item) -> None:
        """Wait for room and put `item` in. Raises ChannelClosed after `close`."""
        await self._shared.senders.take_turn(self._shared.has_room)
        self._put(item)

    def send_now(self, item: Item) -> bool:
        """Put `item` in if that needs no waiting, and say whether it is in. Raises ChannelClosed as `send`."""
        if not self._shared.senders.can_go(self._shared.has_room):
            return False
        self._put(item)
        return True

    @property
    def bystander(self) -> Any:
        """The actor that receives, where it has registered itself with `stand_by`; else None."""
        return self._shared.bystander

    def is_handed_on(self) -> bool:
        """Whether the receiver has handed on all that was sent, and waits for more."""
        return self._shared.senders.can_go(self._shared.is_handed_on)

    async def handed_on(self) -> None:
        """Wait until the receiver has handed on all that was sent, and waits for more."""
        await self._shared.senders.take_turn(self._shared.is_handed_on)

    def close(self) -> None:
        """Say that nothing more will come. Never waits; closing twice is fine."""
        self._shared.sender_closed = True
        self._shared.receivers.notify()

    def _put(self, item: Item) -> None:
        shared = self._shared
        if shared.sender_closed:
            raise ChannelClosed(f"channel {shared.name!r} is closed: the item was not sent")
        shared.items.append(item)
        shared.sent += 1
        shared.peak = max(shared.peak, len(shared.items))
        shared.count()
        shared.receivers.notify()


class Receiver(_End[Item]):
    """The end that takes."""

    async def receive(self) -> Item:
        """Wait for the next item. Raises ChannelClosed once the sender has closed and nothing is left."""
        shared = self._shared
        if shared.bystander is not None and not shared.items:
            shared.receiving = True
            shared.senders.notify()
        await shared.receivers.take_turn(shared.has_item)
        shared.receiving = False
        if not shared.items:
            raise ChannelClosed(f"channel {shared.name!r} is closed: nothing more will come")
        item = shared.items.popleft()
        shared.count()
        shared.senders.notify()
        return item

    def stand_by(self, bystander: Any) -> None:
        """Register the actor that receives, so that the sender can pass it by with items that it would only hand on."""
        self._shared.bystander = bystander

    @property
    def items(self) -> tuple[Item, ...]:
        """The items that have been sent and not been received."""
        return tuple(self._shared.items)

    @property
    def exhausted(self) -> bool:
        """Whether the sender has closed and nothing is left."""
        return self._shared.sender_closed and not self._shared.items


def open_channel(
    name: str, capacity: int, clock: Clock, trace: Trace | None = None
) -> tuple[Sender[Item], Receiver[Item]]:
    """Make a channel that holds at most `capacity` items. `name` is its receiver's, as users know queues by."""
    if capacity < 1:
        raise LineError(f"queue of {name!r}: need a size of at least 1, have {capacity}")
    shared: _Shared[Item] = _Shared(name, capacity, clock, trace or Trace(recording=False))
    return Sender(shared), Receiver(shared)
