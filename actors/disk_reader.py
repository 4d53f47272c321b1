"""Moves bytes from the disk into host memory.

Takes:  messages with nothing in them.
Gives:  messages in a host slot, whose event is done when the bytes have been read.
Holds:  one host slot per group from here until its upload has ended.
Fails:  when a group cannot be read.
"""

from typing import Any

from actors.core.budget import Budget, Slot
from actors.core.event import Event
from actors.core.message import Message
from actors.core.ports import WeightSource
from actors.core.stage import Mover


class DiskReader(Mover):
    """Starts a read as soon as a host slot is vacated, so that several groups are on their way at a time."""

    def __init__(self, source: WeightSource, host: Budget) -> None:
        self._source = source
        self.budget = host

    async def move(self, message: Message[Any], slot: Slot) -> Event:
        """Start reading the group; a host slot is refilled only after its last user is through (rule 3)."""
        await self.vacated(message, slot)
        return self.start(message, self._source.read_into(message.key, slot.buffer))
