"""Makes a group in host memory ready for DMA.

Takes:  messages in a host slot, whose bytes may still be on their way from the disk.
Gives:  the same messages once their bytes have landed.
Holds:  nothing of its own; the slot travels with the message.
Fails:  when the read that it waits for failed; the error is the disk reader's.
"""

from actors.core.budget import Slot
from actors.core.message import READY, Message
from actors.core.stage import Stage


class PinnedStager(Stage):
    """The first of the five places where the host must see a completion (rule 4): disk bytes landed."""

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        """Wait for the bytes, so that everything behind this actor deals with device events only."""
        await self.landed(message)
        return message.moved(message.at, READY)
