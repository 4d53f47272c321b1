"""Which weight groups stay where there is room for them. Pure, and chosen once.

Every pass needs every group, so each byte that stays saves one byte per pass, whichever it is; an LRU would miss every
time. Groups that stay are spread evenly over the pass, so that those that still move do so at an even pace: with the
same bytes at one end, moving and computing would take turns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from actors.core.message import GroupKey


@dataclass(frozen=True, slots=True)
class Residency:
    """The groups that stay on the device, and those of the others that stay in host memory."""

    device: tuple[GroupKey, ...] = ()
    host: tuple[GroupKey, ...] = ()


NOTHING_STAYS = Residency()


def place_groups(
    device_bytes: Mapping[GroupKey, int], device_room: int, host_bytes: Mapping[GroupKey, int], host_room: int
) -> Residency:
    """Fill the device first: what stays there saves both a read and an upload. Sizes are those of all groups, in order.

    Where host and device memory are one, leave the device out: `device_bytes` are empty.
    """
    device = spread(device_bytes, device_room)
    on_device = set(device)
    others = {group: size for group, size in host_bytes.items() if group not in on_device}
    return Residency(device, spread(others, host_room))


def moving_bytes(sizes: Mapping[GroupKey, int], *stays: tuple[GroupKey, ...]) -> int:
    """What moves in every pass: the groups that stay in none of the places."""
    anywhere = {group for place in stays for group in place}
    return sum(size for group, size in sizes.items() if group not in anywhere)


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
    for group in (*(smaller[index * len(smaller) // count] for index in range(count)), *smaller):
        if group not in stays and sizes[group] <= left:
            stays.add(group)
            left -= sizes[group]
    return tuple(group for group in sizes if group in stays)
