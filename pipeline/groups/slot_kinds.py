"""Which kinds of slot a budget has, and which kind each group needs: data, computed from the sizes of the groups."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from actors.core.message import GroupKey
from actors.core.order import layer_parts

Slots = Mapping[str, tuple[int, int]]
"""By kind of slot: how many, and of how many bytes each."""


@dataclass(frozen=True, slots=True)
class SlotKinds:
    """A kind is a size class: `names` lists the kinds, the smallest first, and `of` tells that of each group."""

    names: tuple[str, ...]
    of: Mapping[GroupKey, str]

    @classmethod
    def by_size(cls, sizes: Mapping[GroupKey, int], fewest_slots: int | None = None) -> "SlotKinds":
        """A kind for each place in a layer, named after the part there; `sizes` are in compute order.

        The parts of a layer differ in size (an ffn is 1.5 to 7 times as large as the attention before it), so slots of
        one size would waste most of the memory; the same part differs little from layer to layer. The slices of the
        head go on as the layers do, so that a pass ends without waiting for the slots of one kind while those of
        another are free. Where the smallest budget has fewer slots than there are kinds, the smaller groups use the
        slots of the next larger kind: a single slot holds any group.
        """
        parts = layer_parts(tuple(sizes))
        layers: defaultdict[int, list[GroupKey]] = defaultdict(list)
        for key in sizes:
            layers[key[0]].append(key)
        places = {key: index % len(parts) for keys in layers.values() for index, key in enumerate(keys)}
        largest = [0] * len(parts)
        for key, place in places.items():
            largest[place] = max(largest[place], sizes[key])
        rising = sorted(range(len(parts)), key=largest.__getitem__)
        kept = rising if fewest_slots is None else rising[-fewest_slots:]
        kinds = [parts[place if place in kept else kept[0]] for place in range(len(parts))]
        return cls(tuple(parts[place] for place in kept), {key: kinds[place] for key, place in places.items()})

    @classmethod
    def by_order(cls, order: Iterable[GroupKey], fewest_slots: int | None = None) -> "SlotKinds":
        """The same where sizes are not known: a later part of a layer counts as the larger one."""
        return cls.by_size(dict.fromkeys(order, 0), fewest_slots)

    def counts(self, slots: int) -> dict[str, int]:
        """How many slots of each kind a budget of so many has: an equal share, and what is left over is large."""
        *smaller, largest = self.names
        share = slots // len(self.names)
        return dict.fromkeys(smaller, share) | {largest: slots - share * len(smaller)}

    def largest(self, sizes: Mapping[GroupKey, int]) -> dict[str, int]:
        """The size of the largest group of each kind: what a slot of that kind must hold."""
        found = dict.fromkeys(self.names, 0)
        for key, size in sizes.items():
            found[self.of[key]] = max(found[self.of[key]], size)
        return found
