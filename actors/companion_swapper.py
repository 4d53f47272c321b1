"""Hands companion bytes to the computation that uses them, and sees back what it changed.

Takes:  messages in a device slot, whose bytes may still be on their way, with the host slot that they came from.
Gives:  nothing: the companion's line ends here, the bytes leave through the computation.
Holds:  both slots until what was changed has landed in host memory, and on the disk if the bytes live there.
Fails:  when what was changed cannot be copied or written, or, naming the uploader, when the bytes have not arrived; a
        failed computation is the compute scheduler's to report.
"""

from actors.core.budget import Slot
from actors.core.companion import Companion, Meeting
from actors.core.message import Message, ended
from actors.core.ports import Transfers
from actors.core.stage import Sink


class CompanionSwapper(Sink):
    """The only actor that issues D2H copies of companion bytes: what was changed and nothing else, on their own lane.

    Slots are given back when the changes have landed (rule 4), so no upload stands in the H2D lane waiting for them.
    """

    def __init__(self, companion: Companion, device: Transfers) -> None:
        self.name = f"{companion.name}_swapper"
        self._companion = companion
        self._device = device

    async def take(self, message: Message[Slot]) -> None:
        """Pass the bytes on at once, and wait for their computation beside the actor's loop."""
        self.start(message, self._swap_out(message, self._companion.arrived(message)))

    async def _swap_out(self, message: Message[Slot], meeting: Meeting) -> None:
        slot, host = message.at, message.at.source or message.at
        computed = await meeting.computation()
        # Also behind the arrival of the bytes, since a computation that is not needed is not launched behind it.
        after, left = (message.event, computed), computed
        if host is not slot:
            left = self._device.download(slot.buffer, host.buffer, meeting.changed, after)
        slot.filled = host.filled = left
        await ended(left)
        await self.landed(message)
        if left.error is None:
            await meeting.write_back(host.buffer)
        elif computed.error is None:
            raise left.error
        if host is not slot:
            host.release(after=left)
        self.give_back(message, () if host is slot else (left,))
