"""An NVIDIA GPU as a device: lanes are streams.

Details and pitfalls that shaped this file: one H2D stream and one D2H stream, fixed slots with events instead of
`record_stream`, exact-size pinned memory.
"""

import asyncio
import resource
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

import torch

from actors.core.chained import parts
from actors.core.event import Event
from actors.core.message import ended
from actors.core.ports import Copy
from pipeline.devices.cuda_lane import CudaEvent, CudaLane, Timeline
from pipeline.devices.lane import Lanes
from pipeline.devices.libraries import Before, Libraries
from pipeline.devices.memory import DeviceMemory, HostMemory, Memory, copy_bytes
from pipeline.devices.port import HOST, TWO_PLACES, Place
from pipeline.errors import ConfigError, ResourceError
from pipeline.system.host_memory import available_host_bytes
from pipeline.system.promises import give_back

OUT_OF_MEMORY = 2
"""As the CUDA runtime calls it; pinned memory is bounded by a limit of the process, too."""
LINK_BYTES, LINK_COPIES = 8 << 20, 64
"""Copies that tell the rate of the link: long beside the 10 us that starting one takes."""
PINNED_AT_ONCE = 4 << 20
"""While the driver pins memory, 0.3 ms a MB, it launches nothing."""
ASK_SECONDS = 0.002
"""For so long the event loop asks for the end of short work; then a thread waits."""
FEW_COPIES = 16
"""As many are issued in less time than another thread takes to begin with them."""


class CudaDevice:
    """The GPU that torch calls `cuda:index`."""

    places = TWO_PLACES
    alignment_bytes = 256
    block_rows = 256
    repeated_rows = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    record_bytes: Mapping[str, int] = {HOST: 136 << 10, TWO_PLACES[-1].name: 160 << 10}
    """Of a CUDA graph; 132 and 154 KB were measured on an H200."""
    shares_cores = False
    libraries = Libraries(host=780 << 20, device=64 << 20)
    """740 MiB were measured on an H200, and on the device 32 MiB for each lane that computes."""

    def __init__(self, index: int = 0) -> None:
        if not torch.cuda.is_available():
            raise ConfigError("device='cuda' needs an NVIDIA GPU and a CUDA build of torch; use device='cpu'")
        if index >= (count := torch.cuda.device_count()):
            have = f"have {count}, cuda:0 to cuda:{count - 1}" if count > 1 else "have one, cuda:0"
            raise ConfigError(f"device 'cuda:{index}' is not among the GPUs that CUDA shows: {have}")
        self.torch_device = torch.device("cuda", index)
        self.pools: Mapping[str, str] = {HOST: HOST, self.places[-1].name: str(self.torch_device)}
        self._before = Before()
        timeline = Timeline(self.torch_device)
        self._lanes = Lanes(lambda name: CudaLane(name, self.torch_device, timeline))
        self._pinned: set[Memory] = set()
        self._plain: list[HostMemory] = []
        self._seen: list[int] = []
        self._memory: list[DeviceMemory] = []

    @property
    def loads_later(self) -> Mapping[str, int]:
        """The bytes by place that its libraries add later, when they run."""
        return self.libraries.later()

    def host_memory(self, nbytes: int) -> HostMemory:
        """Pinned memory of exactly `nbytes`, rounded up to whole pages: torch would round up to a power of two."""
        memory = HostMemory(nbytes)
        with torch.cuda.device(self.torch_device):
            _check(torch.cuda.cudart().cudaHostRegister(memory.tensor.data_ptr(), nbytes, 0), f"pin {nbytes} bytes")
        self._pinned.add(memory)
        return memory

    def link_bytes_per_second(self) -> float:
        """The best of many copies, 10 to 50 ms, from memory pinned for them: a link that was idle may begin slowly."""
        source, target = self.host_memory(LINK_BYTES), DeviceMemory(LINK_BYTES, self.torch_device)
        try:
            return LINK_BYTES / min(_copy_seconds(source, target) for _ in range(LINK_COPIES))
        finally:
            self._pinned.discard(source)
            _check(torch.cuda.cudart().cudaHostUnregister(source.tensor.data_ptr()), "unpin memory")
            source.free()

    def plain_memory(self, nbytes: int) -> HostMemory:
        """Memory that is not pinned, which would take 0.3 s a GB."""
        self._plain.append(HostMemory(nbytes))
        return self._plain[-1]

    def seen(self, memory: HostMemory) -> torch.Tensor:
        """Pinned memory has the same address for kernels, which read it over the link."""
        first, cudart = memory.tensor.data_ptr(), torch.cuda.cudart()
        for begin in range(0, memory.nbytes, PINNED_AT_ONCE):
            nbytes = min(PINNED_AT_ONCE, memory.nbytes - begin)
            with torch.cuda.device(self.torch_device):
                _check(cudart.cudaHostRegister(first + begin, nbytes, 0), f"pin {nbytes} bytes")
            self._seen.append(first + begin)
        with torch.cuda.device(self.torch_device):
            return torch.as_tensor(_Seen(first, memory.nbytes))

    def device_memory(self, nbytes: int) -> DeviceMemory:
        """GPU memory of `nbytes`."""
        self._memory.append(DeviceMemory(nbytes, self.torch_device))
        # Torch may hand out what was freed on the stream of this thread, whose kernels still run: no lane waits for it.
        torch.cuda.current_stream(self.torch_device).synchronize()
        return self._memory[-1]

    def least_rows(self, dtype: torch.dtype) -> int:
        """A single row."""
        return 1

    def have_run(self) -> None:
        """Take note that its libraries are loaded."""
        self.libraries.have_run(self._before)

    def memory_bytes(self, place: Place) -> tuple[int, int]:
        """What is free, and all there is. Free is also what torch keeps for reuse, where a closed model leaves it."""
        if place is self.places[0]:
            return (available_host_bytes(),) * 2
        free, whole = torch.cuda.mem_get_info(self.torch_device)
        kept = torch.cuda.memory_reserved(self.torch_device) - torch.cuda.memory_allocated(self.torch_device)
        return free + kept, whole

    def touched_bytes(self, pool: str) -> int:
        """Pages that are pinned, and the GPU's memory, are taken when they are handed out."""
        held: Mapping[str, Collection[Memory]] = {HOST: self._pinned, str(self.torch_device): self._memory}
        plain = [memory.touched_bytes() for memory in tuple(self._plain) if pool == HOST]
        return sum(plain) + sum(memory.nbytes for memory in tuple(held.get(pool, ())))

    def upload(
        self,
        source: Memory,
        target: Memory,
        copies: Sequence[Copy],
        after: Sequence[Event],
        vacant: Event | None = None,
    ) -> Event:
        """Copy on the one H2D stream, first in first out."""
        short = self._is_short(source, copies)
        return self._lanes["h2d"].submit(lambda: copy_bytes(source, target, copies), after, vacant, short=short)

    def download(self, source: Memory, target: Memory, copies: Sequence[Copy], after: Sequence[Event]) -> Event:
        """Copy on the D2H stream, beside uploads."""
        short = self._is_short(target, copies)
        return self._lanes["d2h"].submit(lambda: copy_bytes(source, target, copies), after, short=short)

    def launch(
        self,
        lane: str,
        work: Callable[[], object],
        after: Sequence[Event],
        repeats: Hashable | None = None,
        *,
        short: bool = False,
    ) -> Event:
        """Launch kernels on the lane's stream: what repeats as a graph, what is short here, the rest by its thread."""
        return self._lanes[lane].submit(work, after, short=short, repeats=repeats)

    async def ended_soon(self, event: Event) -> None:
        """Ask again and again: a thread that waits would tell of it a few tenths of a millisecond later.

        Not while a thread still launches the work: each question takes the interpreter lock from it.
        """
        for one in parts(event):
            if isinstance(one, CudaEvent):
                await one.until_issued()
        give_up = time.perf_counter() + ASK_SECONDS
        while not event.done() and time.perf_counter() < give_up:  # noqa: ASYNC110 (nothing tells a GPU event)
            await asyncio.sleep(0)
        await ended(event)

    def _is_short(self, host: Memory, copies: Sequence[Copy]) -> bool:
        """Whether the copies are issued in no time: from memory that is not pinned the driver returns late."""
        return len(copies) <= FEW_COPIES and host in self._pinned

    async def aclose(self) -> None:
        """Wait for what runs, end the threads, unpin the host memory, and free all memory."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        """Close on one thread, so that closing ends though the event loop may be stopped."""
        self._lanes.close()
        self.free()

    def free(self) -> None:
        """Unpin the host memory and free all memory; nothing may run."""
        pinned = [*(memory.tensor.data_ptr() for memory in self._pinned), *self._seen]
        codes = [torch.cuda.cudart().cudaHostUnregister(address) for address in pinned]
        memories: list[Memory] = [*self._pinned, *self._plain, *self._memory]
        for memory in memories:
            memory.free()
        self._pinned.clear()
        self._seen.clear()
        self._plain.clear()
        self._memory.clear()
        give_back(self)
        for code in codes:
            _check(code, "unpin memory")


class _Seen:
    """Bytes at an address, in the words that torch takes for memory that kernels can read."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 2}


def _copy_seconds(source: HostMemory, target: DeviceMemory) -> float:
    torch.cuda.synchronize(target.tensor.device)
    started = time.perf_counter()
    target.tensor.copy_(source.tensor, non_blocking=True)
    torch.cuda.synchronize(target.tensor.device)
    return time.perf_counter() - started


def _check(code: object, action: str) -> None:
    if int(code) == OUT_OF_MEMORY:  # type: ignore[call-overload]
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        have = "no limit of locked memory" if limit == resource.RLIM_INFINITY else f"{limit} bytes (ulimit -l)"
        raise ResourceError(f"the CUDA driver could not {action}: have {have}; raise the limit, or lower host_memory")
    if int(code) != 0:  # type: ignore[call-overload]
        raise ConfigError(f"the CUDA driver could not {action}: error {code}; see the errors before")
