"""Says in which order companion bytes travel.

Takes:  nothing.
Gives:  one message for all bytes that a computation needs beside its weights, with nothing in it yet.
Holds:  nothing.
Fails:  never.
"""

import itertools
from collections.abc import AsyncIterator

from actors.core.companion import Companion
from actors.core.message import READY, Message
from actors.core.stage import Source


class CompanionPlanner(Source):
    """Plans what is asked for: unlike weights, companion bytes depend on who shares the pass."""

    def __init__(self, companion: Companion) -> None:
        self.name = f"{companion.name}_planner"
        self._companion = companion

    async def plan(self) -> AsyncIterator[Message[None]]:
        """Give the bytes of every pass, without end."""
        for seq in itertools.count():
            yield Message(*await self._companion.next_needed(), seq, None, READY)
