"""Moves experts from the disk into host memory, as the reader of weights does.

Takes:  messages with nothing in them, or in the host slot that keeps the expert.
Gives:  messages in a host slot, whose event is done when the expert has been read.
Holds:  one host slot per expert from here until its upload has ended; where it is kept, until it goes.
Fails:  when an expert cannot be read; a guess only once it is right.
"""

from typing import Any

from actors.core.budget import Budget, Slot
from actors.core.event import Event
from actors.core.expert_store import ExpertStore
from actors.core.message import Message
from actors.core.ports import IdleSource
from actors.disk_reader import DiskReader


class ExpertReader(DiskReader):
    """An expert that is kept in host memory passes it by. A guess is read behind all else."""

    def __init__(self, source: IdleSource, host: Budget, store: ExpertStore) -> None:
        super().__init__(source, host)
        self._idle_source = source
        self._store = store

    async def move(self, message: Message[Any], slot: Slot) -> Event:
        """Start reading the expert, or let it wait for its turn."""
        if (guess := self._store.guess_of(message)) is None:
            return await super().move(message, slot)
        await self.vacated(message, slot)
        return self.start(message, self._idle_source.read_while_idle(message.key, slot.buffer, guess))

    def _onward(self, message: Message[Any]) -> Message[Any] | None:
        return None if message.at is None else message
