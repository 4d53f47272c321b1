"""Memory as the runtime holds it: host memory that disks can read into directly, and device memory."""

import ctypes
import mmap
from collections.abc import Sequence
from typing import TypeAlias

import torch

from actors.core.ports import Copy
from pipeline.system.guard import attempt

HUGE_PAGE_BYTES = 2 << 20


class HostMemory:
    """Page-aligned anonymous memory, seen as bytes (`view`) and as a uint8 tensor (`tensor`) of `nbytes`.

    What a user of it has `made` over it, as views, goes with it.

    Anonymous pages count in the process only once they are written, so slots cost what is really used.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.made: object = None
        # Private: shared anonymous memory gets no huge pages, and a direct read into scattered small pages is slower.
        try:
            self._pages = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: need {nbytes} bytes of host memory") from error
        if nbytes >= HUGE_PAGE_BYTES:
            attempt(
                "huge pages cannot be asked for",
                lambda: self._pages.madvise(mmap.MADV_HUGEPAGE),
                None,
                "direct reads into small pages are slower; `penstock doctor` tells what this kernel offers",
            )
        self.view = memoryview(self._pages)[:nbytes]
        self.tensor = torch.frombuffer(self._pages, dtype=torch.uint8)[:nbytes]

    def touched_bytes(self) -> int:
        """How much of it is in memory: the pages, huge ones where the kernel gives them, that were written to."""
        tensor = self.tensor  # keeps the pages, should another thread free this memory now
        resident = (ctypes.c_ubyte * -(-tensor.nbytes // mmap.PAGESIZE))()
        if ctypes.CDLL(None).mincore(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes), resident):
            return 0
        return min(tensor.nbytes, bytes(resident).count(1) * mmap.PAGESIZE)

    def free(self) -> None:
        """Let go of the pages, although this object may still be held; a view that was kept stays valid."""
        self.view, self.made = memoryview(bytearray()), None
        self.tensor = torch.empty(0, dtype=torch.uint8)
        del self._pages


class DeviceMemory:
    """`nbytes` of a GPU's memory at one fixed address, seen as a uint8 tensor (`tensor`); `made` as in `HostMemory`."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.nbytes = nbytes
        self.made: object = None
        self.tensor = torch.empty(nbytes, dtype=torch.uint8, device=device)

    def free(self) -> None:
        """Let go of the memory, although this object may still be held."""
        self.tensor, self.made = torch.empty(0, dtype=torch.uint8), None


Memory: TypeAlias = HostMemory | DeviceMemory


def copy_bytes(source: Memory, target: Memory, copies: Sequence[Copy]) -> None:
    """Copy runs of bytes; between host and GPU the copies are queued on torch's current stream."""
    for copy in copies:
        piece = source.tensor[copy.source_offset : copy.source_offset + copy.length]
        target.tensor[copy.target_offset : copy.target_offset + copy.length].copy_(piece, non_blocking=True)
