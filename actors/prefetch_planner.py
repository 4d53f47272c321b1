"""Says in which order groups travel.

Takes:  nothing.
Gives:  one message per group, with nothing in it yet: in compute order, or as a policy asks for them. From the second
        pass on a message stands for the groups behind it, too, that stay where they are computed.
Holds:  the order of one pass.
Fails:  never.
"""

import math
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
        groups = len(self._order)
        seq, end = 0, math.inf if self._passes is None else self._passes * groups
        first_pass, later = [1] * groups, self._stand_for()
        while seq < end:
            position = (seq if self._queue is None else await self._queue.take()) % groups
            stands_for = (first_pass if seq < groups else later)[position]
            yield Message(*self._order[position], seq, None, READY, stands_for)
            seq += stands_for

    def _stand_for(self) -> Sequence[int]:
        """For each group, for how many its message stands: the first of a pass always travels, and all in a queue."""
        budgets = self.wiring.ahead if self._queue is None else ()
        stays = budgets[-1].residents if budgets else ()
        counts = [1] * len(self._order)
        for position in range(len(counts) - 1, 0, -1):
            if self._order[position] in stays:
                counts[position - 1] += counts[position]
        return counts
