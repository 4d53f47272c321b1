"""Past the page cache of the operating system, and what the cache is told of the bytes that go through it."""

import errno
import os
from pathlib import Path

from pipeline.system.guard import attempt

O_DIRECT = getattr(os, "O_DIRECT", 0)
BLOCK_BYTES = 4096
"""Direct reads need file offset, length and memory address at multiples of this."""
FOLIO_BYTES = 2 << 20
"""The most that a page cache keeps or drops as one."""
NOT_OFFERED = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}
"""Kernels, file systems and sandboxes answer so when they do not offer a way of reading or writing."""


def open_direct(path: Path) -> int:
    """Open a file for reading past the page cache. Raises OSError, with one of NOT_OFFERED where that is refused."""
    if not O_DIRECT:
        raise OSError(errno.EOPNOTSUPP, "this operating system has no direct reads", str(path))
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | O_DIRECT)


def advise(descriptor: int, start: int, length: int, advice: str) -> None:
    """Tell the operating system what will become of these bytes of a file; of all behind `start` without a length."""
    attempt(
        "the page cache takes no advice",
        lambda: os.posix_fadvise(descriptor, start, length, getattr(os, advice)),
        None,
        "it may keep what was read; nothing needs to be set",
    )


def drop_cached(descriptor: int, start: int, end: int) -> None:
    """Take these bytes of a file out of the page cache.

    It keeps folios that reach over an end of what is dropped. Reads make none, since nothing is read ahead, but others
    do: a range that reaches into the next folio begins where the folio of its first byte can begin at the earliest.
    """
    if end // FOLIO_BYTES > start // FOLIO_BYTES:
        start -= start % FOLIO_BYTES
    advise(descriptor, start, end - start, "POSIX_FADV_DONTNEED")
