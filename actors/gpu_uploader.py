"""Moves weight groups from host memory into device memory, as its siblings move experts and companion bytes.

Takes:  messages in a host slot, ready for DMA.
Gives:  messages in a device slot, whose event is done when the copy has landed.
Holds:  one device slot per group from here until its computation has ended.
Fails:  when the device refuses the copy.
"""

import functools
from collections import deque
from collections.abc import Sequence
from typing import Any

from actors.core.arrivals import Arrivals
from actors.core.budget import Budget, Slot
from actors.core.event import Event
from actors.core.message import READY, Message, ended
from actors.core.ports import Copy, Transfers
from actors.core.stage import Mover


class GpuUploader(Mover):
    """Issues each copy at once: the device waits for the slot's last reader itself (rule 4).

    On a device that shares its memory with the host there is no budget of its own: the slot is handed on. Triggered
    policies want to hear of `arrivals`. An uploader that `shares_lane` with another one first waits until its slot is
    free and at most one of its copies is left in the H2D lane: more would hold up copies of the other uploader that are
    needed earlier. `bytes_uploaded` counts what was copied.
    """

    def __init__(
        self, device: Transfers, memory: Budget | None, arrivals: Arrivals | None = None, *, shares_lane: bool = False
    ) -> None:
        self._device = device
        self.budget = memory
        self._arrivals = arrivals
        self._shares_lane = shares_lane
        self.bytes_uploaded = 0
        self._in_lane: deque[Event] = deque([READY, READY], maxlen=2)

    async def move(self, message: Message[Slot], slot: Slot) -> Event:
        """Issue the copy into `slot`, to run after the slot's last reader (rule 3)."""
        await self.host_is_through(message, slot)
        if self._shares_lane:
            await self._lane_clears(message, slot)
        event = self._upload(message, slot, vacant=slot.after)
        if self._arrivals is None:
            return event
        again = functools.partial(self._upload, message, slot, vacant=READY)
        watching = self.start(message, self._arrivals.watch(message, slot, event, again), watched=event)
        return watching if self._arrivals.host_waits else event

    def found(self, message: Message[Slot]) -> None:
        """Say that no link is needed for a resident group."""
        if self._arrivals is not None:
            self._arrivals.queue.arrived()

    def copies(self, message: Message[Any]) -> Sequence[Copy]:
        """Say what to copy from the host slot into the device slot."""
        return self.catalog.copies(message.key)

    def _upload(self, message: Message[Slot], slot: Slot, vacant: Event) -> Event:
        copies = self.copies(message)
        if self.budget is not None:
            self.bytes_uploaded += sum(copy.length for copy in copies)
        event = self._device.upload(message.at.buffer, slot.buffer, copies, (message.event,), vacant=vacant)
        self._in_lane.append(event)
        return event

    async def _lane_clears(self, message: Message[Slot], slot: Slot) -> None:
        """Wait until a copy into the slot would neither wait in the lane for the slot nor be the third one there."""
        await self.vacated(message, slot)
        last_but_one = self._in_lane[0]
        if not last_but_one.done():
            await self.stalled("lane", message, ended(last_but_one))
