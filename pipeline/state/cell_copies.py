"""Cells of a layer, copied out of where they live and back: from the device, host memory or the spill file."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence

from actors.core.companion import own_kind
from actors.core.event import Event
from actors.core.ports import Copy
from pipeline.devices.memory import HostMemory, Memory, copy_bytes
from pipeline.devices.port import Device
from pipeline.state.kv_memory import KvMemory
from pipeline.state.spill_file import Region
from pipeline.system.threads import outlast


class CellCopies:
    """Copies cells that no pass writes, beside those that passes do. In the buffer they lie one behind another."""

    def __init__(self, memory: KvMemory, device: Device) -> None:
        self._memory = memory
        self._device = device

    async def take(self, layer: int, cells: Sequence[int], buffer: HostMemory) -> None:
        """Copy cells of a layer into a buffer. Raises SpillError and OSError where they live on the disk."""
        size = self._memory.layouts[layer].cell_bytes
        copies = [Copy(first * size, at * size, count * size) for first, at, count in _neighbours(cells)]
        if (spill := self._memory.spill) is not None and layer in self._memory.spill_regions:
            for region, run in self._runs(layer, cells):
                await spill.read(region, [run], buffer.view)
        elif layer in self._memory.staying:
            await _outlast(self._device.download(self._memory.staying[layer], buffer, copies, ()))
        else:
            await _copy(self._host(layer), buffer, copies)

    async def put(self, layer: int, cells: Sequence[int], buffer: HostMemory) -> None:
        """Copy cells of a layer from a buffer to where they live. Raises OSError where that is the disk."""
        size = self._memory.layouts[layer].cell_bytes
        copies = [Copy(at * size, first * size, count * size) for first, at, count in _neighbours(cells)]
        if (spill := self._memory.spill) is not None and layer in self._memory.spill_regions:
            for region, run in self._runs(layer, cells):
                await spill.write(region, [run], buffer.view)
        elif layer in self._memory.staying:
            await _outlast(self._device.upload(buffer, self._memory.staying[layer], copies, ()))
        else:
            await _copy(buffer, self._host(layer), copies)

    def _host(self, layer: int) -> Memory:
        return self._memory.host_cells[own_kind(layer)][0]

    def _runs(self, layer: int, cells: Sequence[int]) -> Iterator[tuple[Region, Copy]]:
        """Runs of the buffer, and the region in which they lie as they lie there."""
        region = self._memory.spill_regions[layer]
        size = region.cell_bytes
        for first, at, count in _neighbours(cells):
            run = Copy(at * size, at * size, count * size)
            yield Region(region.start + (first - at) * size, size, region.cell), run


async def _outlast(event: Event) -> None:
    """Wait for a copy also when cancelled: its cells are another's then."""
    await outlast([asyncio.ensure_future(event.wait())])


async def _copy(source: Memory, target: Memory, copies: Sequence[Copy]) -> None:
    await outlast([asyncio.get_running_loop().run_in_executor(None, copy_bytes, source, target, copies)])


def _neighbours(cells: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of cells whose numbers rise by one: the first, where it is in the list, and how many there are."""
    for _, run in itertools.groupby(enumerate(cells), lambda pair: pair[1] - pair[0]):
        pairs = list(run)
        yield pairs[0][1], pairs[0][0], len(pairs)
