"""Gets hold of a layer's KV blocks in host memory, from the disk if they live there.

Takes:  messages with nothing in them.
Gives:  messages in a host slot, whose event is done when the blocks that the pass needs are there.
Holds:  one host slot per layer from here until its new rows are back; the slot may be where the blocks live.
Fails:  when the disk fails, or gives back other bytes than were written.
"""

from typing import Any

from actors.core.budget import Budget, Slot
from actors.core.event import Event
from actors.core.message import READY, Message
from actors.core.ports import KeyValues
from actors.core.stage import Mover


class KvReader(Mover):
    """No row is ever missed: what the pass before wrote is home before a layer's slot is free, or before it is read."""

    def __init__(self, key_values: KeyValues, host: Budget) -> None:
        self._key_values = key_values
        self.budget = host

    def kind(self, message: Message[Any]) -> str:
        """Blocks that live in host memory have a slot of their own there."""
        return self._key_values.host_kind(message.layer)

    async def move(self, message: Message[Any], slot: Slot) -> Event:
        """Start reading, if that is needed; a host slot is refilled only after its last user is through (rule 3)."""
        await self.vacated(message, slot)
        reading = self._key_values.reading(message.layer, slot.buffer)
        return READY if reading is None else self.start(message, reading)
