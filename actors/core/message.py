"""A message: what one actor hands to the next, for each weight group and pass."""

import asyncio
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from actors.core.event import Event
from actors.core.operation import cancelled_from_outside, pending_cancellations

Place = TypeVar("Place", covariant=True)
Elsewhere = TypeVar("Elsewhere")
GroupKey: TypeAlias = tuple[int, str]
"""The layer and the part of a weight group. A bare tuple: the kernel makes one for each group and pass."""


@dataclass(slots=True, unsafe_hash=True)
class Message(Generic[Place]):
    """A weight group on its way. `at` must not be touched before `event` (rule 4).

    Nothing changes a message: `moved` and `dataclasses.replace` make another. It is not frozen, since making a frozen
    one takes more than twice as long, and each actor makes one for each group.

    Attributes:
        layer: index of the layer, counted from 0; the head comes after the last layer.
        group: the part of the layer that the group is.
        seq: position of the group in the plan; the next message in every channel has `seq + stands_for` (rule 1).
        at: where the bytes are now: nothing before the disk reader, then a `Slot`.
        event: done once the bytes have arrived at `at`.
        stands_for: how many groups are computed when it comes: its own, and those behind it that stay, and travel no
            more.
    """

    layer: int
    group: str
    seq: int
    at: Place
    event: Event
    stands_for: int = 1

    @property
    def key(self) -> GroupKey:
        """Layer and part of the group: the same in every pass."""
        return self.layer, self.group

    def moved(self, at: Elsewhere, event: Event) -> "Message[Elsewhere]":
        """The same group at another place, or with another event."""
        return Message(self.layer, self.group, self.seq, at, event, self.stands_for)


class _Ready:
    """The event of something that needs no waiting."""

    error = None
    span = None

    def done(self) -> bool:
        return True

    async def wait(self) -> None:
        return None


READY: Event = _Ready()


async def ended(event: Event) -> None:
    """Wait, on the host, until the operation has ended, well or not."""
    cancellations = pending_cancellations()
    try:
        await event.wait()
    except asyncio.CancelledError:
        if cancelled_from_outside(since=cancellations):
            raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException:
        return
