"""One memory limit for whichever program is measured, its page cache included.

A limit on address space or data (RLIMIT_AS, RLIMIT_DATA) does not count the page cache, so a program that maps files
would have all of the machine. There are two ways that do:

* "systemd": a control group of its own, made by `systemd-run --scope`; the kernel holds the limit.
* "watchdog", for machines without systemd: look every few milliseconds at what the process holds and at what the page
  cache holds of its files, drop cached pages, mapped ones too, while that is too much, and kill the process when its
  own memory alone is. Pages go in no order, which is kinder to a cyclic scan than the kernel, whose oldest come next.
"""

import asyncio
import contextlib
import ctypes
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, PenstockError
from pipeline.memory import human_bytes

WAYS = ("systemd", "watchdog")
SYSTEMD_RUNS = Path("/run/systemd/system")
"""A folder that is there where systemd manages the machine."""
LOOK_SECONDS = 0.01
PIECE_BYTES = 8 << 20
CACHESTAT = 451
"""The number of the system call, the same on all machines; Linux 6.5 or later."""
PROCESS_MADVISE, MADV_PAGEOUT = 440, 21
"""The same of Linux 5.10."""


class ProgramFailed(PenstockError):
    """A program that was to be measured ended with an error, which it has told on stderr, or was over its limit."""


class OverLimit(ProgramFailed):
    """A program's own memory was more than the limit, and it was ended for that."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """So many bytes for a program and the cached pages of its files, held in one of the `WAYS`."""

    nbytes: int
    way: str = "systemd"

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ConfigError(f"--limit-by: need one of {', '.join(WAYS)}, have {self.way!r}")
        if self.way == "systemd" and not (shutil.which("systemd-run") and SYSTEMD_RUNS.is_dir()):
            raise ConfigError(
                "--memory-limit: systemd does not run here, so that no control group can be asked of it; add "
                "--limit-by watchdog, or leave the limit out and start all of it in a container that has one"
            )

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` under the limit."""
        if self.way == "watchdog":
            return list(command)
        user = [] if os.geteuid() == 0 else ["--user"]
        limits = ["-p", f"MemoryMax={self.nbytes}", "-p", "MemorySwapMax=0"]
        return ["systemd-run", *user, "--scope", "--quiet", *limits, "--", *command]


async def run_limited(command: Sequence[str], limit: MemoryLimit | None, folders: Sequence[Path]) -> tuple[str, int]:
    """Run a program that reads the files in `folders`, of which nothing is cached when it starts.

    Returns what it printed, and the most bytes that were counted: by the watchdog, its own memory and the cached
    pages of the files; otherwise its own memory alone. Raises ProgramFailed.
    """
    watched = limit is not None and limit.way == "watchdog"
    with CachedFiles(folders) as files:
        files.drop_all()
        line = command if limit is None else limit.command(command)
        process = await asyncio.create_subprocess_exec(*line, stdout=asyncio.subprocess.PIPE)
        reading = asyncio.create_task(process.communicate())
        most, over = 0, False
        try:
            while not reading.done():
                own, cached = _own_bytes(process.pid), files.look() if watched else 0
                most = max(most, own + cached)
                if watched and limit is not None and own + cached > limit.nbytes:
                    files.drop(own + cached - limit.nbytes, process.pid)
                    over = own > limit.nbytes
                if over:
                    break
                await asyncio.wait([reading], timeout=LOOK_SECONDS)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            printed, _ = await reading
    if over and limit is not None:
        raise OverLimit(
            f"{_name(command)}: need at least {human_bytes(own)}, have a limit of {human_bytes(limit.nbytes)}; raise "
            "--memory-limit, or measure fewer requests"
        )
    if process.returncode:
        raise ProgramFailed(f"{_name(command)}: ended with status {process.returncode}; see above for why")
    return printed.decode(), most


class CachedFiles:
    """What the page cache holds of the files in some folders, which may grow in number and size."""

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
        """Drop so many of the bytes last looked at, or all but dirty pages and those that others than `pid` map.

        Returns how many it were.
        """
        dropped = 0
        with _Mapped(pid) as mapped:
            for descriptor, start in self._pieces():
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

    def _pieces(self) -> Iterator[tuple[int, int]]:
        held = [descriptor for descriptor, nbytes in self._cached.items() if nbytes]
        pieces = [(one, start) for one in held for start in range(0, os.fstat(one).st_size, PIECE_BYTES)]
        self._chance.shuffle(pieces)
        yield from pieces


_LIBC = ctypes.CDLL(None, use_errno=True)


class _Mapped:
    """Where a process maps which files, and a way to have the kernel take such pages from it."""

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
                piece = _Piece(low, high - low)
                _LIBC.syscall(PROCESS_MADVISE, self._process, ctypes.byref(piece), 1, MADV_PAGEOUT, 0)


class _Piece(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Range(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Pages(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cached", "dirty", "written", "evicted", "recently"))


def cached_bytes(descriptor: int, start: int = 0, length: int = 0) -> int:
    """What the page cache holds of a part of an open file; a length of 0 goes to its end."""
    pages = _Pages()
    if _LIBC.syscall(CACHESTAT, descriptor, ctypes.byref(_Range(start, length)), ctypes.byref(pages), 0):
        reason = os.strerror(ctypes.get_errno())
        raise ConfigError(f"--limit-by watchdog: cachestat: {reason}; need Linux 6.5 or later, or use systemd")
    return int(pages.cached) * os.sysconf("SC_PAGE_SIZE")


def _own_bytes(pid: int) -> int:
    """What a process holds that is not the page cache's; the code of libraries, which all share, is not counted."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem") if name in fields)


def _name(command: Sequence[str]) -> str:
    return " ".join(command[1:3])
