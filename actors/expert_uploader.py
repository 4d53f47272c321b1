"""Moves experts from host memory into device memory, as the uploader of weights does.

Takes:  messages in a host slot, whose bytes may still be on their way from the disk.
Gives:  messages in a device slot, whose event is done when the copy has landed, with the host slot that they came from;
        experts that the host computes, in their host slot.
Holds:  one device slot per expert from here until its computation has ended; where it is kept, until it goes.
Fails:  when the device refuses the copy; when the read that it waits for failed, whose error is the reader's.
"""

from typing import Any

from actors.core.budget import Budget, Slot
from actors.core.event import Event
from actors.core.expert_store import ExpertStore
from actors.core.message import READY, Message
from actors.core.ports import Transfers
from actors.gpu_uploader import GpuUploader


class ExpertUploader(GpuUploader):
    """Where host and device memory are the same there is no budget of its own: the slot is handed on.

    It waits for the disk itself, without a stager before it: a layer waits for its experts, and each actor that they
    pass takes time. For the same reason a copy waits until its slot is free, but for no other copy in the H2D lane.
    """

    keeps_source = True

    def __init__(self, device: Transfers, memory: Budget | None, store: ExpertStore) -> None:
        super().__init__(device, memory, shares_lane=memory is not None)
        self._store = store

    async def move(self, message: Message[Slot], slot: Slot) -> Event:
        """Issue the copy, but for a wrong guess that was not read whole."""
        guess = self._store.guess_of(message)
        if guess is None or guess.goes_on() or guess.kept:
            return await super().move(message, slot)
        await self.vacated(message, slot)
        return READY

    async def _receive(self) -> Message[Any]:
        message = await super()._receive()
        await self.landed(message)
        return message

    def _onward(self, message: Message[Any]) -> Message[Any] | None:
        return message if self._store.stays_on_host(message) else None

    async def _lane_clears(self, message: Message[Any], slot: Slot) -> None:
        """Wait for the slot alone."""
        await self.vacated(message, slot)
