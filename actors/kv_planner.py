"""Says in which order the KV blocks of a pass travel.

Takes:  nothing.
Gives:  one message per pass and layer whose blocks do not stay on the device, with nothing in it yet.
Holds:  nothing.
Fails:  never.
"""

import itertools
from collections.abc import AsyncIterator

from actors.core.message import READY, Message
from actors.core.ports import KeyValues
from actors.core.stage import Source


class KvPlanner(Source):
    """Plans a pass once it has begun: unlike weights, KV blocks depend on who shares the pass."""

    def __init__(self, key_values: KeyValues) -> None:
        self._key_values = key_values

    async def plan(self) -> AsyncIterator[Message[None]]:
        """Give the layers of every pass, without end."""
        seqs = itertools.count()
        while True:
            await self._key_values.begun()
            for layer in self._key_values.layers:
                await self._key_values.wanted(layer)
                yield Message(layer, "kv", next(seqs), None, READY)
