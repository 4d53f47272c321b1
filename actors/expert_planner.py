"""Says in which order experts travel: those that a layer wants, behind them those that a later layer may want.

Takes:  nothing.
Gives:  one message per expert that is not where it is computed: in the host slot that keeps it, or with nothing in it
        yet.
Holds:  nothing.
Fails:  never.
"""

import itertools
from collections.abc import AsyncIterator

from actors.core.budget import Slot
from actors.core.expert_store import ExpertStore
from actors.core.message import READY, Message
from actors.core.stage import Source


class ExpertPlanner(Source):
    """Plans an expert when the store asks for it: which ones a layer wants is known when its router has chosen."""

    def __init__(self, store: ExpertStore) -> None:
        self._store = store

    async def plan(self) -> AsyncIterator[Message[Slot | None]]:
        """Give what the store asks for, without end."""
        for seq in itertools.count():
            layer, part, slot = await self._store.next(seq)
            yield Message(layer, part, seq, slot, READY)
