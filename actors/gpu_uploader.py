"""Moves bytes from host memory into device memory; the only actor that issues H2D copies of weights.

Takes:  messages in a host slot, ready for DMA.
Gives:  messages in a device slot, whose event is done when the copy has landed.
Holds:  one device slot per group from here until its computation has ended.
Fails:  when the device refuses the copy.
"""

from actors.core.budget import Budget, Slot
from actors.core.message import Message
from actors.core.ports import Device, Event
from actors.core.stage import Mover


class GpuUploader(Mover):
    """Issues each copy at once and never waits for one: the device waits for the slot's last reader itself (rule 4).

    On a device that shares its memory with the host there is no budget of its own: the slot is handed on.
    """

    def __init__(self, device: Device, memory: Budget | None) -> None:
        self._device = device
        self.budget = memory

    async def move(self, message: Message[Slot], slot: Slot) -> Event:
        """Issue the copy into `slot`, to run after the slot's last reader (rule 3)."""
        await self.host_is_through(message, slot)
        copies = self.catalog.copies(message.layer, message.group)
        return self._device.upload(message.at.buffer, slot.buffer, copies, (message.event,), vacant=slot.after)
