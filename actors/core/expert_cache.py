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
"""The slots for what moves hold so many bytes: those that lanes read at a time, and as many that are computed."""
FEWEST_MOVING, MOST_MOVING = 3, 64
"""Fewest and most slots for what moves: of large experts one is read, one waits to be read, and one is computed."""


class EvictionPolicy(Protocol):
    """Says which of the kept experts goes next. Each place has one of its own."""

    def use(self, expert: Expert) -> None:
        """Note that an expert is used: one that is kept, or is kept from now on."""

    def remove(self, expert: Expert) -> None:
        """Note that an expert is kept no more."""

    def victims(self) -> Iterable[Expert]:
        """The kept experts, the next to go first. That may be the one that was used just now: then it is not kept."""


class LeastRecentlyUsed:
    """Of the layer that keeps the most experts, the one that was used longest ago goes first.

    Not the one that was used longest ago in any layer: layers come round in a circle, so that one belongs to the layer
    whose turn comes next, and where less is kept than a pass uses, no layer would ever find an expert.
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
        """One layer's experts, by last use. Of layers that keep as many, that used last: its turn is farthest off."""
        most = max(self._sizes.values(), default=0)
        if self._sizes.get(self._last) == most:
            return self._layers[self._last]
        return next((self._layers[layer] for layer, size in self._sizes.items() if size == most), ())


class LeastFrequentlyUsed:
    """The expert goes first that was used least often since the model was opened; of several, by last use."""

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
    """Some experts stay once they have come; the others go as `LeastRecentlyUsed` says."""

    def __init__(self, experts: Collection[Expert]) -> None:
        self._pins = frozenset(experts)
        self._kept: dict[Expert, None] = {}
        self._others = LeastRecentlyUsed()

    def use(self, expert: Expert) -> None:
        """Note the order of pinned experts here, and that of the others there."""
        if expert in self._pins:
            self._kept[expert] = None
        else:
            self._others.use(expert)

    def remove(self, expert: Expert) -> None:
        """Forget it where it was noted."""
        if expert in self._pins:
            del self._kept[expert]
        else:
            self._others.remove(expert)

    def victims(self) -> Iterable[Expert]:
        """All that are not pinned; then, where too many are, the pinned ones that came last."""
        return itertools.chain(self._others.victims(), reversed(self._kept))


EVICTION: Mapping[str, Callable[[], EvictionPolicy] | None] = {
    "lru": LeastRecentlyUsed,
    "lfu": LeastFrequentlyUsed,
    "none": None,
}
"""The policies that have names; None keeps nothing."""


def window_of(expert_bytes: int) -> int:
    """How many slots a place has for experts that move, each of so many bytes, where it has enough slots."""
    return min(MOST_MOVING, max(FEWEST_MOVING, math.ceil(WINDOW_BYTES / max(1, expert_bytes))))


def kept_slots(slots: int, experts: int, window: int) -> int:
    """How many of a place's slots may hold kept experts; the others, a `window` of them, are for experts that move.

    These are at least one slot, and at most half of the slots where there are more; but where all `experts` of the
    model have a slot, all are kept.
    """
    return slots if slots >= experts else slots - max(1, min(window, slots // 2))


def streams(union: int, experts: int) -> bool:
    """Whether a pass uses most of a layer's experts, as a prompt does, so that they are read like a dense layer.

    Such experts evict no others: behind a prompt decoding goes on with those that it used before.
    """
    return union > 1 and 2 * union > experts


@dataclass(frozen=True, slots=True)
class Found:
    """Which of the experts that are wanted now a place has, and has not, and which others it gives up for them."""

    hits: Sequence[int]
    misses: Sequence[int]
    victims: Sequence[Expert]


class ExpertCache:
    """The experts that one place keeps, `capacity` at most; none where there is no policy.

    Streamed experts are kept while there is room, and go before all others. A streamed expert takes the place only of a
    streamed one of a layer that keeps at least two more, so that layers keep about as many each. Otherwise the disk
    would rest during a layer that keeps all of its experts, and be the bound of one that keeps none.
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
        """Decide what is kept when these have been used: first the hits are used, then the misses, each in their order.

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
        """Keep the expert of a layer no more that was streamed last."""
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
    """Ask the caches of all places for experts, that of the last place first: its misses are asked of the one before.

    Those that are computed `on_host`, from their slots in the first place, are asked of that place alone.
    """
    found: list[Found] = []
    for cache in reversed(caches):
        asked = [index for index in experts if index not in on_host] if cache is not caches[0] else experts
        found.insert(0, cache.request(layer, asked, streamed=streamed))
        left = {*found[0].misses, *on_host}
        experts = [index for index in experts if index in left]
    return found
