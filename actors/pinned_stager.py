"""Makes a group in host memory ready for DMA.

Takes:  messages in a host slot, whose bytes may still be on their way from the disk.
Gives:  the same messages once their bytes have landed, and are those of the first pass.
Holds:  nothing of its own; the slot travels with the message.
Fails:  when the read that it waits for failed; the error is the disk reader's. When a group's bytes differ from those
        of its first read, and still do when it is read again.
"""

import logging

from actors.core.budget import Slot
from actors.core.message import READY, Message
from actors.core.ports import Checksums, WeightSource
from actors.core.stage import Stage

logger = logging.getLogger("penstock")


class PinnedStager(Stage):
    """The first of the three places where the host must see a completion (rule 4): disk bytes landed.

    With `checksums` it looks at what has landed, beside the reads of the groups behind it. A resident group comes by
    once, so there is nothing to compare it with.
    """

    def __init__(self, source: WeightSource, checksums: Checksums | None) -> None:
        self._source = source
        self._checksums = checksums

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        """Wait for the bytes, so that everything behind this actor deals with device events only."""
        await self.landed(message)
        if self._checksums is not None:
            await self._verify(self._checksums, message)
        return message.moved(message.at, READY)

    async def _verify(self, checksums: Checksums, message: Message[Slot]) -> None:
        place = (message.layer, message.group, message.at.buffer)
        if (fault := await checksums.compare(*place)) is None:
            return
        logger.warning("layer %d %s differs from its first read, reading once more: %s", *place[:2], fault)
        await self._source.read_into(*place)
        if (fault := await checksums.compare(*place)) is not None:
            raise fault
