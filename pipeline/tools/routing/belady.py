"""The policy that no run can have: it knows what comes. No other one has more hits, so it is the bound of all."""

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator

from actors.core.expert_cache import Expert


class Belady:
    """That goes first which is used last of all again, or never. Source: doi 10.1147/sj.52.0078.

    `coming` are all uses that will be told, in order.
    """

    def __init__(self, coming: Iterable[Expert]) -> None:
        self._coming: defaultdict[Expert, deque[int]] = defaultdict(deque)
        for time, expert in enumerate(coming):
            self._coming[expert].append(time)
        self._next: dict[Expert, float] = {}
        self._order: list[tuple[float, Expert]] = []

    def use(self, expert: Expert) -> None:
        """Look up when it is used again."""
        self._coming[expert].popleft()
        self._next[expert] = again = self._coming[expert][0] if self._coming[expert] else math.inf
        heapq.heappush(self._order, (-again, expert))

    def remove(self, expert: Expert) -> None:
        """Forget that it is kept, but not its uses."""
        del self._next[expert]

    def victims(self) -> Iterator[Expert]:
        """The one that is used last; what it was ranked by before it was used again is skipped."""
        while self._order:
            again, expert = self._order[0]
            if self._next.get(expert) == -again:
                yield expert
            heapq.heappop(self._order)
