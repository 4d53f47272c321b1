"""Count the bytes of some files that the page cache holds, and drop them."""

import contextlib
import ctypes
import os
import random
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import ConfigError

PIECE_BYTES = 8 << 20
CACHESTAT = 451
"""The number of the system call, the same on all machines; Linux 6.5 or later."""
PROCESS_MADVISE, MADV_PAGEOUT = 440, 21
"""The same of Linux 5.10."""


class CachedFiles:
    """Counts and drops the cached bytes of the files in some folders, which may grow in number and size."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = tuple(folders)
        self._open: dict[str, int] = {}
        self._cached: dict[int, int] = {}
        # Pieces are dropped in no order: the oldest first would be the very next to be needed in a cyclic scan.
        self._chance = random.Random(0)

    def __enter__(self) -> "CachedFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def look(self) -> int:
        """Count the cached bytes of all files. Raises ConfigError where the kernel cannot tell."""
        self._open_new()
        self._cached = {descriptor: cached_bytes(descriptor) for descriptor in self._open.values()}
        return sum(self._cached.values())

    def drop_all(self) -> None:
        """Drop whatever is cached, but mapped and dirty pages."""
        self._open_new()
        for descriptor in self._open.values():
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def drop(self, nbytes: int, pid: int | None = None) -> int:
        """Drop so many of the bytes last looked at, unless dirty or mapped by others than `pid`; return how many."""
        dropped = 0
        held = [descriptor for descriptor, cached in self._cached.items() if cached]
        pieces = [(one, start) for one in held for start in range(0, os.fstat(one).st_size, PIECE_BYTES)]
        self._chance.shuffle(pieces)
        with _Mapped(pid) as mapped:
            for descriptor, start in pieces:
                if dropped >= nbytes:
                    break
                if had := cached_bytes(descriptor, start, PIECE_BYTES):
                    mapped.page_out(os.fstat(descriptor).st_ino, start)
                    os.posix_fadvise(descriptor, start, PIECE_BYTES, os.POSIX_FADV_DONTNEED)
                    dropped += had - cached_bytes(descriptor, start, PIECE_BYTES)
        return dropped

    def _open_new(self) -> None:
        for folder in self._folders:
            for entry in os.scandir(folder):
                if entry.path not in self._open and entry.is_file():
                    self._open[entry.path] = os.open(entry.path, os.O_RDONLY)


_LIBC = ctypes.CDLL(None, use_errno=True)


class _Mapped:
    """Knows which files a process maps where, and has the kernel take such pages from it."""

    def __init__(self, pid: int | None) -> None:
        self._process = None
        self._places: list[tuple[int, int, int, int]] = []
        if pid is None:
            return
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
            for addresses, _, offset, _, inode, *_ in lines:
                first, end = (int(address, 16) for address in addresses.split("-"))
                self._places.append((int(inode), int(offset, 16), first, end))
            self._process = os.pidfd_open(pid)

    def __enter__(self) -> "_Mapped":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            os.close(self._process)

    def page_out(self, inode: int, start: int) -> None:
        """Take a piece of a file from the process; needs to be root, or the process's parent with that right."""
        for found, offset, first, end in self._places:
            low, high = max(first, first + start - offset), min(end, first + start + PIECE_BYTES - offset)
            if found == inode and low < high:
                piece = (ctypes.c_uint64 * 2)(low, high - low)  # an iovec
                _LIBC.syscall(PROCESS_MADVISE, self._process, ctypes.byref(piece), 1, MADV_PAGEOUT, 0)


def cached_bytes(descriptor: int, start: int = 0, length: int = 0) -> int:
    """Count the cached bytes of a part of an open file; a length of 0 goes to its end."""
    part = (ctypes.c_uint64 * 2)(start, length)
    pages = (ctypes.c_uint64 * 5)()  # cached, dirty, being written, evicted, recently evicted
    if _LIBC.syscall(CACHESTAT, descriptor, ctypes.byref(part), ctypes.byref(pages), 0):
        reason = os.strerror(ctypes.get_errno())
        raise ConfigError(f"--limit-by watchdog: cachestat: {reason}; need Linux 6.5 or later, or use systemd")
    return int(pages[0]) * os.sysconf("SC_PAGE_SIZE")
