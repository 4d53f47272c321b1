"""Moves companion bytes from host memory into device memory, as the uploader of weights does.

Takes:  messages in a host slot, whose bytes may still be on their way.
Gives:  messages in a device slot, whose event is done when the copy has landed, with the host slot that they came from.
Holds:  one device slot for each message from here until what was changed is back.
Fails:  when the device refuses the copy.
"""

from collections.abc import Sequence
from typing import Any

from actors.core.budget import Budget
from actors.core.companion import SHARED, Companion
from actors.core.message import Message
from actors.core.ports import Copy, Transfers
from actors.gpu_uploader import GpuUploader


class CompanionUploader(GpuUploader):
    """Where host and device memory are the same there is no budget of its own: the slot is handed on."""

    keeps_source = True

    def __init__(self, companion: Companion, device: Transfers, memory: Budget | None) -> None:
        super().__init__(device, memory, shares_lane=memory is not None)
        self.name = f"{companion.name}_uploader"
        self._companion = companion

    def kind(self, message: Message[Any]) -> str:
        """All take turns in the same device slots."""
        return SHARED

    def copies(self, message: Message[Any]) -> Sequence[Copy]:
        """Those bytes only that this pass needs."""
        return self._companion.copies(message)
