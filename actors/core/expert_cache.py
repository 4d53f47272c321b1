"""Which experts a place keeps, and which of them goes when another one comes: decisions, without slots and time.

The store asks here, and so does a replay of recorded routing: what the replay says of hits is what a run finds.
"""

import itertools
import math
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from actors.core.errors import PolicyFailed

Expert: TypeAlias = tuple[int, int]
"""The layer, and the index of the expert in it."""

WINDOW_BYTES = 72 << 20
"""Slots for what moves hold so many: what lanes read at a time, and as many that are computed meanwhile."""
FEWEST_MOVING, MOST_MOVING = 3, 64
"""Fewest and most slots for what moves: of large experts one is read, one waits to be read, and one is computed."""


class EvictionPolicy(Protocol):
    """Says which of the kept experts goes next. Each place has one of its own."""

    def use(self, expert: Expert) -> None:
        """Note that an expert is used: one that is kept, or is kept from now on."""

    def remove(self, expert: Expert) -> None:
        """Note that an expert is kept no more."""

    def victims(self) -> Iterable[Expert]:
        """What is kept, in the order in which it goes. The first may be what came last: then that is not kept."""


class LeastRecentlyUsed:
    """That goes first whose last use was before those of all others, in the layer of which most are kept.

    Layers come round in a circle: over all of them what was used longest ago is what comes next, and where less is kept
    than a pass uses, nothing of it would ever be found.
    """

    def __init__(self) -> None:
        self._layers: dict[int, OrderedDict[Expert, None]] = {}
        self._sizes: dict[int, int] = {}
        self._last = -1

    def use(self, expert: Expert) -> None:
        """Put it behind all others of its layer."""
        self._last = expert[0]
        order = self._layers.setdefault(self._last, OrderedDict())
        order[expert] = None
        order.move_to_end(expert)
        self._sizes[self._last] = len(order)

    def remove(self, expert: Expert) -> None:
        """Forget it."""
        del self._layers[expert[0]][expert]
        self._sizes[expert[0]] -= 1

    def victims(self) -> Iterable[Expert]:
        """By last use, in one layer; of layers with as many, in that of the last use, which comes last again."""
        most = max(self._sizes.values(), default=0)
        if self._sizes.get(self._last) == most:
            return self._layers[self._last]
        return next((self._layers[layer] for layer, size in self._sizes.items() if size == most), ())


class LeastFrequentlyUsed:
    """That goes first which was used least often since the model was opened, kept or not; of these by last use."""

    def __init__(self) -> None:
        self._uses: Counter[Expert] = Counter()
        self._ranks: dict[Expert, tuple[int, int, Expert]] = {}
        self._order: list[tuple[int, int, Expert]] = []
        self._times = itertools.count()

    def use(self, expert: Expert) -> None:
        """Count it."""
        if expert in self._ranks:
            self.remove(expert)
        self._uses[expert] += 1
        self._ranks[expert] = rank = (self._uses[expert], next(self._times), expert)
        insort(self._order, rank)

    def remove(self, expert: Expert) -> None:
        """Go on knowing how often it was used."""
        del self._order[bisect_left(self._order, self._ranks.pop(expert))]

    def victims(self) -> Iterable[Expert]:
        """By number of uses."""
        return (expert for _, _, expert in self._order)


class Pinned:
    """Some experts stay once they have come; the others go as another policy says."""

    def __init__(self, experts: Collection[Expert], others: Callable[[], EvictionPolicy] = LeastRecentlyUsed) -> None:
        self._pins = frozenset(experts)
        self._kept: dict[Expert, None] = {}
        self._others = others()

    def use(self, expert: Expert) -> None:
        """Tell the other policy of what is not pinned."""
        if expert in self._pins:
            self._kept[expert] = None
        else:
            self._others.use(expert)

    def remove(self, expert: Expert) -> None:
        """Tell the other policy of what is not pinned."""
        if expert in self._pins:
            del self._kept[expert]
        else:
            self._others.remove(expert)

    def victims(self) -> Iterable[Expert]:
        """All others, and where too many are pinned, those that came last."""
        return itertools.chain(self._others.victims(), reversed(self._kept))


EVICTION: Mapping[str, Callable[[], EvictionPolicy] | None] = {
    "lru": LeastRecentlyUsed,
    "lfu": LeastFrequentlyUsed,
    "none": None,
}
"""The policies that have names; None keeps nothing."""


def window_of(expert_bytes: int) -> int:
    """How many slots are for what moves, where experts have so many bytes and there are enough slots."""
    return min(MOST_MOVING, max(FEWEST_MOVING, math.ceil(WINDOW_BYTES / max(1, expert_bytes))))


def kept_slots(slots: int, experts: int, window: int) -> int:
    """How many of a place's slots may hold kept experts, where the model has so many; the `window` is for what moves.

    One slot at least is, and no more than half unless there is only one; but where all experts have a slot, all are
    kept.
    """
    return slots if slots >= experts else slots - max(1, min(window, slots // 2))


def streams(union: int, experts: int) -> bool:
    """Whether a pass that uses so many of a layer's experts reads them like a dense layer: it uses most of them.

    As a prompt does, after which decoding goes on with what it used before.
    """
    return union > 1 and 2 * union > experts


@dataclass(frozen=True, slots=True)
class Found:
    """What a place has of the experts that are wanted now, and which it gives up for them beside wanted ones."""

    hits: Sequence[int]
    misses: Sequence[int]
    victims: Sequence[Expert]


class ExpertCache:
    """The experts that one place keeps, `capacity` at most; none where there is no policy.

    What is streamed is kept while there is room, and goes before all that was wanted otherwise. It evicts nothing but
    what was streamed of another layer of which more is kept: the disk would rest while that layer is computed, which
    has nothing to read, and be the bound of another, of which nothing is kept.
    """

    def __init__(self, capacity: int, policy: EvictionPolicy | None) -> None:
        self.capacity = 0 if policy is None else capacity
        self._policy = policy or LeastRecentlyUsed()
        self._kept: set[Expert] = set()
        self._kept_of = Counter[int]()
        self._streamed: dict[int, dict[Expert, None]] = {}
        self._forgotten: list[Expert] = []

    def __contains__(self, expert: Expert) -> bool:
        return expert in self._kept

    def request(self, layer: int, experts: Sequence[int], *, streamed: bool = False) -> Found:
        """Decide what is kept when these have been used: hits first, then what comes for them, each in its order.

        Raises PolicyFailed, naming the policy, where a method of it raises or gives no kept expert.
        """
        hits = [index for index in experts if (layer, index) in self._kept]
        misses = [index for index in experts if (layer, index) not in self._kept]
        wanted = {(layer, index): None for index in (*hits, *misses)}
        gone: list[Expert] = []
        try:
            while self._forgotten:
                self._policy.remove(self._forgotten.pop())
            for expert in wanted if self.capacity else ():
                if not streamed:
                    self._streamed.get(layer, {}).pop(expert, None)
                    self._keep(expert)
                    self._policy.use(expert)
                    if len(self._kept) > self.capacity:
                        gone.append(self._evict())
                elif expert not in self._kept:
                    if len(self._kept) >= self.capacity:
                        if (most := self._most_streamed()) is None or self._kept_of[most] < self._kept_of[layer] + 2:
                            continue
                        gone.append(self._drop_streamed(most))
                    self._keep(expert)
                    self._streamed.setdefault(layer, {})[expert] = None
        except PolicyFailed:
            raise
        except Exception as error:
            what = f"expert_cache {type(self._policy).__name__} failed: {type(error).__name__}: {error}"
            raise PolicyFailed(what) from error
        return Found(hits, misses, [expert for expert in gone if expert not in wanted])

    def forget(self) -> None:
        """Keep nothing any more. The policy hears of it at the next request: it may have failed, and would again."""
        self._forgotten += self._kept.difference(*self._streamed.values())
        self._kept.clear()
        self._kept_of.clear()
        self._streamed.clear()

    def _keep(self, expert: Expert) -> None:
        if expert not in self._kept:
            self._kept.add(expert)
            self._kept_of[expert[0]] += 1

    def _most_streamed(self) -> int | None:
        """The layer of which most is kept, of those of which something was streamed."""
        return max(
            (layer for layer, some in self._streamed.items() if some), key=self._kept_of.__getitem__, default=None
        )

    def _drop_streamed(self, layer: int) -> Expert:
        """Keep what was streamed last of a layer no more."""
        victim, _ = self._streamed[layer].popitem()
        return self._leave(victim)

    def _evict(self) -> Expert:
        if (most := self._most_streamed()) is not None:
            return self._drop_streamed(most)
        first = list(itertools.islice(self._policy.victims(), 1))
        if not first or first[0] not in self._kept:
            have = f"{first[0]!r}, which is not kept" if first else "nothing"
            what = f"expert_cache {type(self._policy).__name__}: victims gave {have}"
            raise PolicyFailed(f"{what}; need a kept expert")
        (victim,) = first
        self._policy.remove(victim)
        return self._leave(victim)

    def _leave(self, victim: Expert) -> Expert:
        self._kept.remove(victim)
        self._kept_of[victim[0]] -= 1
        return victim


def request(
    caches: Sequence[ExpertCache],
    layer: int,
    experts: Sequence[int],
    *,
    streamed: bool = False,
    on_host: Collection[int] = (),
) -> list[Found]:
    """Ask the places, the last one first, where experts are computed: what one has not is asked of the one before.

    What is computed `on_host`, where it lies in the first place, is asked of that alone.
    """
    found: list[Found] = []
    for cache in reversed(caches):
        asked = [index for index in experts if index not in on_host] if cache is not caches[0] else experts
        found.insert(0, cache.request(layer, asked, streamed=streamed))
        left = {*found[0].misses, *on_host}
        experts = [index for index in experts if index in left]
    return found
