"""Says in which order groups travel.

Takes:  nothing.
Gives:  one message per group, in compute order, pass after pass, with nothing in it yet.
Holds:  the order of one pass.
Fails:  never.
"""

import itertools
from collections.abc import AsyncIterator, Sequence

from actors.core.message import READY, Message
from actors.core.stage import Source


class PrefetchPlanner(Source):
    """Plans in a cycle: weights do not depend on tokens, so the next pass follows at once (rule 9).

    Backpressure alone decides how far the plan runs ahead. When nobody computes, the line stands full of the first
    groups of the next pass.
    """

    def __init__(self, order: Sequence[tuple[int, str]], passes: int | None = None) -> None:
        self._order = tuple(order)
        self._passes = passes

    async def plan(self) -> AsyncIterator[Message[None]]:
        """Give every group of every pass; without end unless a number of passes was set."""
        cycle = itertools.count() if self._passes is None else range(self._passes)
        groups = ((layer, group) for _ in cycle for layer, group in self._order)
        for seq, (layer, group) in enumerate(groups):
            yield Message(layer, group, seq, None, READY)
