"""Gets hold of companion bytes in host memory, from the disk if they live there.

Takes:  messages with nothing in them.
Gives:  messages in a host slot, whose event is done when the bytes that the pass needs are there.
Holds:  one host slot for each message from here until what was changed is back; bytes may live in the slot.
Fails:  when the disk fails, or gives back other bytes than were written.
"""

from typing import Any

from actors.core.budget import Budget, Slot
from actors.core.companion import SHARED, Companion, own_kind
from actors.core.event import Event
from actors.core.message import READY, Message
from actors.core.stage import Mover


class CompanionReader(Mover):
    """No change is missed: what the pass before wrote is back before its slot is free, or before it is read."""

    def __init__(self, companion: Companion, host: Budget) -> None:
        self.name = f"{companion.name}_reader"
        self._companion = companion
        self.budget = host

    def kind(self, message: Message[Any]) -> str:
        """Bytes that live in host memory have a slot of their own there."""
        own = own_kind(message.layer)
        return own if own in self._companion.host_cells else SHARED

    async def move(self, message: Message[Any], slot: Slot) -> Event:
        """Start reading, if that is needed; a host slot is refilled only after its last user is through (rule 3)."""
        await self.vacated(message, slot)
        reading = self._companion.reading(message, slot.buffer)
        return READY if reading is None else self.start(message, reading)
