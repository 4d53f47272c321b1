"""Where the bytes of a group lie in a host slot and in a device slot. Arithmetic only.

file          ....|....|norm|q k v o..|....      runs of bytes, anywhere
host slot     |.norm|q k v o..|                  each run's covering window of whole blocks, as it was read
              |..odd..| -> |.odd...|             a tensor between two addresses of its items, moved to one after reading
device slot   |norm|q|k|v|o|                     tensors packed, each at a multiple of what the device needs
quantised     |norm|q|k|v|o|q.s|k.s|v.s|o.s|     the same, parts of matrices that are multiplied together side by side
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from actors.core.ports import Copy
from pipeline.formats.parts import MULTIPLIED_TOGETHER
from pipeline.groups.groups import WeightGroup
from pipeline.system.page_cache import BLOCK_BYTES

HOST_ALIGNMENT_BYTES = 64
"""Odd tensors are moved to a multiple of this: a cache line."""


class Window(NamedTuple):
    """Whole blocks of a file and their place in the host slot. The last block may reach beyond the end of the file.

    What a reading lane reads at once, a chunk, is a part of one.
    """

    file: Path
    start: int
    length: int
    slot_offset: int


@dataclass(frozen=True, slots=True)
class HostLayout:
    """What to read for a group, then to move inside its slot, and the byte offset of each tensor there afterwards.

    Offsets are by short name. No move touches the bytes of another tensor.
    """

    windows: tuple[Window, ...]
    offsets: Mapping[str, int]
    slot_bytes: int
    needed_bytes: int
    moves: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceLayout:
    """The byte offset of each tensor in the device slot by short name, and the copies that bring them there."""

    offsets: Mapping[str, int]
    slot_bytes: int
    copies: tuple[Copy, ...]


def row_window(start: int, length: int) -> tuple[int, int]:
    """The start and length of the whole blocks that cover `length` bytes from `start`."""
    window_start = start // BLOCK_BYTES * BLOCK_BYTES
    return window_start, _round_up(start + length, BLOCK_BYTES) - window_start


def host_layout(group: WeightGroup) -> HostLayout:
    """One window for all tensors whose covering blocks touch, the windows one after another in the slot.

    An odd tensor has one for itself, so that it can be moved over the padding in front of it.
    """
    windows: list[Window] = []
    moves: list[Copy] = []
    last_is_odd = True  # nothing joins what is not there
    offsets: dict[str, int] = {}
    slot_bytes = 0
    for tensor in sorted(group.tensors, key=lambda tensor: (tensor.file, tensor.start)):
        start, length = row_window(tensor.start, tensor.length)
        last = None if last_is_odd or tensor.is_odd else windows[-1]
        last_is_odd = tensor.is_odd
        if last is not None and last.file == tensor.file and start <= last.start + last.length:
            windows.pop()
            length += start - last.start  # tensors never overlap, so the later one ends later
            start, slot_offset = last.start, last.slot_offset
        else:
            slot_offset = slot_bytes
        windows.append(Window(tensor.file, start, length, slot_offset))
        slot_bytes = slot_offset + length
        offset = offsets[tensor.short] = slot_offset + tensor.start - start
        if tensor.is_odd:
            offsets[tensor.short] -= offset % HOST_ALIGNMENT_BYTES
            moves.append(Copy(offset, offsets[tensor.short], tensor.length))
    return HostLayout(tuple(windows), offsets, slot_bytes, group.needed_bytes, tuple(moves))


def device_layout(group: WeightGroup, host: HostLayout, alignment_bytes: int) -> DeviceLayout:
    """The tensors packed in the order in which they lie in the host slot, so that neighbours travel in one copy, but
    for parts of quantised matrices that are multiplied together: each behind the same part of the one before.
    """
    offsets: dict[str, int] = {}
    copies: list[Copy] = []
    slot_bytes = 0
    places = {short: (offset, 0) for short, offset in host.offsets.items()} | _beside_each_other(group, host)
    for tensor in sorted(group.tensors, key=lambda tensor: places[tensor.short]):
        source = host.offsets[tensor.short]
        target = offsets[tensor.short] = _round_up(slot_bytes, alignment_bytes)
        copies.append(Copy(source, target, tensor.length))
        slot_bytes = target + tensor.length
    return DeviceLayout(offsets, _round_up(slot_bytes, alignment_bytes), tuple(merge_copies(copies)))


def _beside_each_other(group: WeightGroup, host: HostLayout) -> dict[str, tuple[int, int]]:
    """By short name, where the first of the parts lies that are to be neighbours, and which of them it is."""
    places: dict[str, tuple[int, int]] = {}
    for together in MULTIPLIED_TOGETHER:
        quantised = [one.tensors for one in group.matrices if one.short in together and len(one.tensors) > 1]
        quantised.sort(key=lambda parts: host.offsets[parts[0].short])
        for parts in zip(*quantised, strict=False):
            offset = min(host.offsets[part.short] for part in parts)
            places.update({part.short: (offset, index) for index, part in enumerate(parts)})
    return places


def merge_copies(copies: Iterable[Copy]) -> list[Copy]:
    """The same copies, each with those that follow it without a gap as one. They come in ascending order."""
    runs: list[Copy] = []
    ends = None
    for copy in copies:
        if ends == (copy.source_offset, copy.target_offset):
            runs[-1] = Copy(runs[-1].source_offset, runs[-1].target_offset, runs[-1].length + copy.length)
        else:
            runs.append(copy)
        ends = (copy.source_offset + copy.length, copy.target_offset + copy.length)
    return runs


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
