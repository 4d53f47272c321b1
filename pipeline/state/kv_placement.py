"""Which layers' KV blocks stay on the device, live in host memory, or live on the disk. Pure, and chosen once.

One byte that stays on the device saves one byte per pass, whichever it is, so never an LRU: every pass looks at every
layer. Layers that stay are spread evenly, so that those that move do so at an even pace.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from actors.core.order import evenly

MOST_SHARED = 3
"""Slots that layers take turns in: one is attended to, one arrives, one is on its way back."""
FEWEST_SHARED = 2
"""With one slot less, moving and computing still take turns well enough."""


@dataclass(frozen=True, slots=True)
class KvPlacement:
    """By place, the layers that live there; `device_slots` and `host_slots` are the slots in which the
    others take turns on the device, and on their way from the disk in host memory."""

    device: tuple[int, ...]
    host: tuple[int, ...]
    disk: tuple[int, ...]
    device_slots: int
    host_slots: int

    def __str__(self) -> str:
        return (
            f"stay on the device in {len(self.device)} of {len(self.device) + len(self.moving)} layers, live in host "
            f"memory in {len(self.host)}, and on the disk in {len(self.disk)}"
        )

    @property
    def moving(self) -> tuple[int, ...]:
        """The layers that do not stay on the device, in compute order."""
        return tuple(sorted((*self.host, *self.disk)))


def place_kv(layer_bytes: Mapping[int, int], rooms: Sequence[int]) -> KvPlacement:
    """Place layers of so many bytes each where there is room for them, the last place first, the others on the disk.

    Both are in order, `layer_bytes` by number in that of computing. `rooms` are the bytes that each place of the device
    has for them. In a device with one place a layer that comes from the disk is attended to where it lands. The slots
    through which layers pass are there even where there is no room for them: the memory plan refuses it then.
    """
    moving: Sequence[int] = tuple(layer_bytes)
    stays: list[tuple[int, ...]] = []
    slots: list[int] = []
    for room in reversed(rooms):
        staying, shared = tuple(moving), 0
        if sum(layer_bytes[layer] for layer in moving) > room:
            staying, shared = _staying(layer_bytes, moving, room, MOST_SHARED), MOST_SHARED
            if not staying:
                staying, shared = _staying(layer_bytes, moving, room, FEWEST_SHARED), min(FEWEST_SHARED, len(moving))
        kept = {*staying}
        moving = [layer for layer in moving if layer not in kept]
        stays.append(staying)
        slots.append(shared)
    *device_slots, host_slots = slots
    return KvPlacement(stays[0], tuple(chain(*stays[1:])), tuple(moving), sum(device_slots), host_slots)


def _staying(layer_bytes: Mapping[int, int], moving: Sequence[int], room: int, shared: int) -> tuple[int, ...]:
    """The layers that stay beside so many slots, each as large as the largest layer that moves.

    As many as fit are spread evenly, and then those that are small enough for what is left. The first of all stays, so
    that moving begins while it computes.
    """

    def taken(count: int) -> int:
        staying = evenly(moving, count)
        largest = max(layer_bytes[layer] for layer in {*moving}.difference(staying))
        return sum(layer_bytes[layer] for layer in staying) + shared * largest

    count = max(0, bisect_right(range(len(moving)), room, key=taken) - 1)
    if not count:
        return ()
    staying, left = {*evenly(moving, count)}, room - taken(count)
    for layer in moving:
        if layer not in staying and layer_bytes[layer] <= left:
            staying.add(layer)
            left -= layer_bytes[layer]
    return tuple(sorted(staying))
