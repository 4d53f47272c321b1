"""Host memory that disks can read into directly and devices can copy from."""

import mmap

import torch


class HostMemory:
    """Page-aligned anonymous memory, seen as bytes (`view`) and as a uint8 tensor (`tensor`) of `nbytes`.

    Anonymous pages count in the process only once they are written, so slots cost what is really used.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._pages = mmap.mmap(-1, max(nbytes, 1))
        if hasattr(mmap, "MADV_HUGEPAGE") and nbytes >= 1 << 21:
            self._pages.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self._pages)[:nbytes]
        self.tensor = torch.frombuffer(self._pages, dtype=torch.uint8)[:nbytes]
