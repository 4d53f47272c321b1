"""The CPU as a device: lanes are threads, and host memory is device memory."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from actors.core.message import READY
from actors.core.ports import Copy, Event
from pipeline.devices.lane import Lane
from pipeline.devices.memory import HostMemory


class CpuDevice:
    """The embedded default. Uploads hand the slot on; with `copy=True` they really copy, as on a GPU."""

    torch_device = torch.device("cpu")

    def __init__(self, *, copy: bool = False) -> None:
        self.unified = not copy
        self.packed = False
        self._lanes: defaultdict[str, Lane] = _Lanes()

    def host_memory(self, nbytes: int) -> HostMemory:
        """Page-aligned memory of `nbytes`."""
        return HostMemory(nbytes)

    def device_memory(self, nbytes: int) -> HostMemory:
        """The same kind of memory: there is no other."""
        return HostMemory(nbytes)

    def upload(self, source: HostMemory, target: HostMemory, copies: Sequence[Copy], after: Sequence[Event]) -> Event:
        """Copy on a thread of its own; nothing to do when source and target are one."""
        if source is target:
            return next((event for event in after if not event.done() or event.error is not None), READY)
        return self._lanes["h2d"].submit(lambda: _copy(source, target, copies), after)

    def download(self, source: HostMemory, target: HostMemory, copies: Sequence[Copy], after: Sequence[Event]) -> Event:
        """Copy on a thread of its own, beside uploads."""
        return self._lanes["d2h"].submit(lambda: _copy(source, target, copies), after)

    def launch(self, lane: str, work: Callable[[], object], after: Sequence[Event]) -> Event:
        """Run `work` on the lane's thread."""
        return self._lanes[lane].submit(work, after)

    async def aclose(self) -> None:
        """Wait for what runs on the lanes, and end their threads."""
        lanes = list(self._lanes.values())
        self._lanes.clear()
        for lane in lanes:
            await asyncio.to_thread(lane.close)


class _Lanes(defaultdict[str, Lane]):
    def __missing__(self, name: str) -> Lane:
        self[name] = Lane(name)
        return self[name]


def _copy(source: HostMemory, target: HostMemory, copies: Sequence[Copy]) -> None:
    for copy in copies:
        piece = source.tensor[copy.source_offset : copy.source_offset + copy.length]
        target.tensor[copy.target_offset : copy.target_offset + copy.length].copy_(piece)
