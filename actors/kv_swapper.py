"""Hands the KV blocks of a layer to its attention, and sees the new rows home.

Takes:  messages in a device slot, whose blocks may still be on their way, with the host slot that they came from.
Gives:  nothing: the KV line ends here, the blocks leave through the attention.
Holds:  both slots until the new rows have landed in host memory, and on the disk if they live there.
Fails:  when the new rows cannot be copied or written, or, naming the uploader, when the blocks have not arrived; a
        failed attention is the compute scheduler's to report.
"""

from collections.abc import Awaitable, Callable, Sequence

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.message import Message, ended
from actors.core.ports import Copy, KeyValues, Transfers
from actors.core.stage import Sink


class KvSwapper(Sink):
    """The only actor that issues D2H copies of KV: new rows and nothing else, on a lane of their own.

    Slots are given back when the rows have landed (rule 4), so no upload ever stands in the H2D lane waiting for them.
    """

    def __init__(self, device: Transfers, key_values: KeyValues) -> None:
        self._device = device
        self._key_values = key_values

    async def take(self, message: Message[Slot]) -> None:
        """Pass the blocks on at once, and wait for their attention beside the actor's loop."""
        attention = self._key_values.arrived(message)
        self.start(message, self._swap_out(message, attention, self._key_values.new_rows()))

    async def _swap_out(
        self, message: Message[Slot], attention: Callable[[], Awaitable[Event]], rows: Sequence[Copy]
    ) -> None:
        slot, host = message.at, message.at.source or message.at
        attended = await attention()
        # Behind the blocks' arrival too: nobody may have asked for their attention, which else comes behind it.
        after = (message.event, attended)
        left = attended if host is slot else self._device.download(slot.buffer, host.buffer, rows, after)
        slot.filled = host.filled = left
        await ended(left)
        await self.landed(message)
        if left.error is None:
            await self._key_values.write_back(message.layer, host.buffer, rows)
        elif attended.error is None:
            raise left.error
        if host is not slot:
            host.release(after=left)
        self.free(message, () if host is slot else (left,))
