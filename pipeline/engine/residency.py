"""Which weight groups stay where there is room for them. Pure, and chosen once.

Every pass needs every group, so each byte that stays saves one byte per pass, whichever it is; an LRU would miss every
time. Groups that stay are spread evenly over the pass, so that those that still move do so at an even pace: with the
same bytes at one end, moving and computing would take turns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from actors.core.message import GroupKey
from actors.core.order import evenly


@dataclass(frozen=True, slots=True)
class Residency:
    """The groups that stay, by the name of each place, in order; nothing stays where no place is named."""

    by_place: Mapping[str, tuple[GroupKey, ...]]

    def stays(self, place: str) -> tuple[GroupKey, ...]:
        """The groups that stay in a place."""
        return self.by_place.get(place, ())

    def arrived(self, place: str) -> frozenset[GroupKey]:
        """The groups that do not move into a place, as they stay there or in a place behind it."""
        names = list(self.by_place)
        behind = names[names.index(place) :] if place in names else ()
        return frozenset(group for name in behind for group in self.by_place[name])

    def moving_bytes(self, place: str, sizes: Mapping[GroupKey, int]) -> int:
        """Return the bytes that move into a place in every pass, where groups have these sizes."""
        arrived = self.arrived(place)
        return sum(size for group, size in sizes.items() if group not in arrived)


NOTHING_STAYS = Residency({})


def place_groups(sizes: Mapping[str, Mapping[GroupKey, int]], room: Mapping[str, int]) -> Residency:
    """Fill the last place first: what stays there saves a read and every copy.

    By place, in order, `sizes` are those of all groups in compute order, and `room` how many bytes there are.
    """
    stays: dict[str, tuple[GroupKey, ...]] = {}
    for place in reversed(list(sizes)):
        placed = {group for groups in stays.values() for group in groups}
        others = {group: size for group, size in sizes[place].items() if group not in placed}
        stays[place] = spread(others, room[place])
    return Residency({place: stays[place] for place in sizes})


def spread(sizes: Mapping[GroupKey, int], room: int) -> tuple[GroupKey, ...]:
    """Groups of at most `room` bytes in all, in compute order, spread evenly by bytes.

    A group stays when the room's share of all bytes up to it has paid for it. What is left then holds smaller ones.
    """
    share = min(1.0, max(0, room) / max(1, sum(sizes.values())))
    stays: set[GroupKey] = set()
    left, credit = room, 0.0
    for group, size in sizes.items():
        credit += share * size
        if size <= min(round(credit), left):
            stays.add(group)
            credit -= size
            left -= size
    smaller = [group for group, size in sizes.items() if group not in stays and size <= left]
    count = min(len(smaller), left // max((sizes[group] for group in smaller), default=1))
    for group in (*evenly(smaller, count), *smaller):
        if group not in stays and sizes[group] <= left:
            stays.add(group)
            left -= sizes[group]
    return tuple(group for group in sizes if group in stays)
