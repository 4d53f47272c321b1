"""Says in which order companion bytes travel.

Takes:  nothing.
Gives:  one message per pass and layer whose bytes move, with nothing in it yet.
Holds:  nothing.
Fails:  never.
"""

import itertools
from collections.abc import AsyncIterator

from actors.core.companion import Companion
from actors.core.message import READY, Message
from actors.core.stage import Source


class CompanionPlanner(Source):
    """Plans a layer when its bytes are asked for: they depend on the requests of the pass, as weights do not."""

    def __init__(self, companion: Companion) -> None:
        self.name = f"{companion.name}_planner"
        self._companion = companion

    async def plan(self) -> AsyncIterator[Message[None]]:
        """Give the bytes of every pass, without end."""
        for seq in itertools.count():
            layer = await self._companion.rendezvous.next_layer()
            yield Message(layer, self._companion.name, seq, None, READY)
