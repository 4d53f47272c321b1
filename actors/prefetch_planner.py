"""Says in which order groups travel.

Takes:  nothing.
Gives:  one message per group, with nothing in it yet: in compute order, or as a policy asks for them.
Holds:  the order of one pass.
Fails:  never.
"""

import itertools
from collections.abc import AsyncIterator, Sequence

from actors.core.message import READY, GroupKey, Message
from actors.core.prefetch import PrefetchQueue
from actors.core.stage import Source


class PrefetchPlanner(Source):
    """Plans in a cycle: weights do not depend on tokens, so the next pass follows at once (rule 9).

    Without a queue backpressure alone decides how far the plan runs ahead, and when nothing computes, the line stands
    full of the first groups of the next pass. With a queue the policy behind it decides.
    """

    def __init__(
        self, order: Sequence[GroupKey], passes: int | None = None, queue: PrefetchQueue | None = None
    ) -> None:
        self._order = tuple(order)
        self._passes = passes
        self._queue = queue

    async def plan(self) -> AsyncIterator[Message[None]]:
        """Give every group of every pass; without end unless a number of passes was set."""
        if self._queue is not None:
            self._queue.restart()
        seqs = itertools.count() if self._passes is None else range(self._passes * len(self._order))
        for seq in seqs:
            position = seq if self._queue is None else await self._queue.take()
            layer, group = self._order[position % len(self._order)]
            yield Message(layer, group, seq, None, READY)
