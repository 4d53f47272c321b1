"""Moves experts from the disk into host memory, as the reader of weights does.

Takes:  messages with nothing in them, or in the host slot that keeps the expert.
Gives:  messages in a host slot, whose event is done when the expert has been read.
Holds:  one host slot per expert from here until its upload has ended; where it is kept, until it goes.
Fails:  when an expert cannot be read.
"""

from typing import Any

from actors.core.message import Message
from actors.disk_reader import DiskReader


class ExpertReader(DiskReader):
    """An expert that is kept in host memory passes it by."""

    def _onward(self, message: Message[Any]) -> Message[Any] | None:
        return None if message.at is None else message
