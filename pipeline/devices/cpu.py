"""The CPU as a device: lanes are threads, and host memory is device memory."""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch

from actors.core.event import Event
from actors.core.message import READY, ended
from actors.core.ports import Copy
from pipeline.devices.lane import Lane, Lanes
from pipeline.devices.libraries import Before, Libraries
from pipeline.devices.memory import HostMemory, Memory, copy_bytes
from pipeline.devices.port import HOST, ONE_PLACE, TWO_PLACES, Place
from pipeline.system.host_memory import available_host_bytes
from pipeline.system.promises import give_back


class CpuDevice:
    """The embedded default. Uploads hand the slot on; with `copy=True` they really copy, as on a GPU."""

    torch_device = torch.device("cpu")
    alignment_bytes = None
    block_rows = 32
    repeated_rows = ()
    record_bytes: Mapping[str, int] = {}
    libraries = Libraries(host=64 << 20)
    """25 MB were measured after the first opening, 34 after 30, and 49 after 40 with a vocabulary of 128,256 tokens."""

    def __init__(self, *, copy: bool = False) -> None:
        self.places = TWO_PLACES if copy else ONE_PLACE
        self.pools: Mapping[str, str] = {place.name: HOST for place in self.places}
        self.shares_cores = not copy
        self._before = Before()
        self._lanes = Lanes(Lane)
        self._memory: list[HostMemory] = []

    @property
    def loads_later(self) -> Mapping[str, int]:
        """The bytes by place that its libraries add later, when they run."""
        return self.libraries.later()

    def host_memory(self, nbytes: int) -> HostMemory:
        """Page-aligned memory of `nbytes`."""
        self._memory.append(HostMemory(nbytes))
        return self._memory[-1]

    def plain_memory(self, nbytes: int) -> HostMemory:
        """The same."""
        return self.host_memory(nbytes)

    def seen(self, memory: HostMemory) -> torch.Tensor:
        """They can."""
        return memory.tensor

    def device_memory(self, nbytes: int) -> HostMemory:
        """The same kind of memory: there is no other."""
        return self.host_memory(nbytes)

    def least_rows(self, dtype: torch.dtype) -> int:
        """OneDNN multiplies a single row with another kernel than two or more, which takes as long.

        In fp16 only where the CPU can; elsewhere torch has a kernel of its own, for which every row is the only one.
        """
        if not torch.backends.mkldnn.is_available():
            return 1
        return 1 if dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported() else 2

    def have_run(self) -> None:
        """Take note that its libraries are loaded."""
        self.libraries.have_run(self._before)

    def memory_bytes(self, place: Place) -> tuple[int, int]:
        """What is free, and all that may be used: that of the host, whichever place it plays."""
        free = available_host_bytes()
        return free, free

    def link_bytes_per_second(self) -> None:
        """There is no link."""

    def touched_bytes(self, pool: str) -> int:
        """What of its memory was written to by now."""
        return sum(memory.touched_bytes() for memory in tuple(self._memory)) if pool == HOST else 0

    def upload(
        self,
        source: Memory,
        target: Memory,
        copies: Sequence[Copy],
        after: Sequence[Event],
        vacant: Event | None = None,
    ) -> Event:
        """Copy on a thread of its own; nothing is copied when source and target are one."""
        if source is target:
            pending = [event for event in after if not event.done() or event.error is not None]
            if len(pending) < 2:
                return pending[0] if pending else READY
        return self._lanes["h2d"].submit(
            lambda: copy_bytes(source, target, () if source is target else copies), after, vacant
        )

    def download(self, source: Memory, target: Memory, copies: Sequence[Copy], after: Sequence[Event]) -> Event:
        """Copy on a thread of its own, beside uploads."""
        return self._lanes["d2h"].submit(lambda: copy_bytes(source, target, copies), after)

    def launch(
        self,
        lane: str,
        work: Callable[[], object],
        after: Sequence[Event],
        repeats: Hashable | None = None,
        *,
        short: bool = False,
    ) -> Event:
        """Run `work` on the lane's thread."""
        return self._lanes[lane].submit(work, after)

    async def ended_soon(self, event: Event) -> None:
        """As for any other event."""
        await ended(event)

    async def aclose(self) -> None:
        """Wait for what runs on the lanes, end their threads, and free all memory."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        """Close on one thread, so that closing ends though the event loop may be stopped."""
        self._lanes.close()
        self.free()

    def free(self) -> None:
        """Free all memory; nothing may run."""
        for memory in self._memory:
            memory.free()
        self._memory.clear()
        give_back(self)
