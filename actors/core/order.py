"""The order of a pass tells this about its groups, whatever their parts are called."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from actors.core.message import GroupKey

Item = TypeVar("Item")


def evenly(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """So many of the items, spread evenly; the first of all is the first."""
    return tuple(items[index * len(items) // count] for index in range(count))


def layer_parts(order: Sequence[GroupKey]) -> tuple[str, ...]:
    """The parts of a layer, in compute order: those of the first one."""
    return tuple(part for layer, part in order if layer == order[0][0])


def halves(order: Sequence[GroupKey]) -> list[GroupKey]:
    """For each position, the half-layer that a policy takes the group for: the number of a layer, and one of its parts.

    What follows the layers, as the slices of the head do, counts as the last part of one more layer each.
    """
    parts = layer_parts(order)
    counts: Counter[str] = Counter()
    known = []
    for _, part in order:
        kind = part if part in parts else parts[-1]
        known.append((counts[kind], kind))
        counts[kind] += 1
    return known


def lanes(order: Sequence[GroupKey]) -> dict[GroupKey, str]:
    """For each group, the part of a layer that it counts as; where each part has a lane, it is computed in that one."""
    return {key: part for key, (_, part) in zip(order, halves(order), strict=True)}
