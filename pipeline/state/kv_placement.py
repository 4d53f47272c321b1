"""Which layers' KV blocks stay on the device, live in host memory, or live on the disk. Pure, and chosen once.

One byte that stays on the device saves one byte per pass, whichever it is, so never an LRU: every pass looks at every
layer. Layers that stay are spread evenly, so that those that move do so at an even pace.
"""

from collections.abc import Sequence
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


def place_kv(layers: int, rooms: Sequence[int]) -> KvPlacement:
    """Place the layers where there is room for them, the last place first, and the others on the disk.

    `rooms` are the layers that each place of the device has room for, in order. In a device with one place a layer that
    comes from the disk is attended to where it lands. The slots through which layers pass are there even where there is
    no room for them: the memory plan refuses it then.
    """
    moving: Sequence[int] = range(layers)
    stays: list[tuple[int, ...]] = []
    slots: list[int] = []
    for room in reversed(rooms):
        shared = min(MOST_SHARED, max(FEWEST_SHARED, room - 1), len(moving)) if room < len(moving) else 0
        staying_count = min(len(moving), max(0, room - shared))
        staying = evenly(moving, staying_count)  # the first of all stays, so that moving begins while it computes
        moving = [layer for layer in moving if layer not in staying]
        stays.append(staying)
        slots.append(shared)
    *device_slots, host_slots = slots
    return KvPlacement(stays[0], tuple(chain(*stays[1:])), tuple(moving), sum(device_slots), host_slots)
