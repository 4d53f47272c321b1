"""KV blocks on the disk: one file without a name, written and read past the page cache, every block checked."""

import asyncio
import errno
import fcntl
import functools
import logging
import mmap
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.core.ports import Copy
from pipeline.errors import ConfigError, PenstockError
from pipeline.system.limits import reached_limit
from pipeline.system.page_cache import BLOCK_BYTES, NOT_OFFERED, O_DIRECT
from pipeline.system.threads import Threads, outlast

logger = logging.getLogger("penstock")
THREADS = 4
CHUNK_BYTES = 4 << 20
O_TMPFILE = getattr(os, "O_TMPFILE", 0)


class SpillError(PenstockError):
    """The disk gave back other bytes than were written."""


@dataclass(frozen=True, slots=True)
class Region:
    """Where the cells of a layer lie in the file, from byte `start` on, each of `cell_bytes`: both multiples of 4096.

    `cell` is what errors call one.
    """

    start: int
    cell_bytes: int
    cell: str


class SpillFile:
    """Room for the cells of layers, of `nbytes` in all.

    The file has no name, so that nothing is left behind however the process ends. `bytes_read` and `bytes_written`
    count what really moved.
    """

    def __init__(self, folder: Path, nbytes: int) -> None:
        self.bytes_read = 0
        self.bytes_written = 0
        self._folder = folder
        self._checksums: dict[int, int] = {}
        self._descriptor = _create(folder)
        try:
            _allocate(folder, self._descriptor, nbytes)
            _go_past_the_page_cache(folder, self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._threads = Threads(THREADS, "penstock-kv-disk")

    async def read(self, region: Region, runs: Sequence[Copy], buffer: memoryview) -> None:
        """Read runs of whole cells, which lie in their region of the file as they will lie in `buffer`.

        Returns or raises only when no thread writes into `buffer` any more.

        Raises:
            SpillError: a cell is not what was written.
            OSError: the disk failed.
        """
        await self._run([functools.partial(self._read, region, run, buffer) for run in _chunks(region, runs)])
        self.bytes_read += sum(run.length for run in runs)

    async def write(self, region: Region, runs: Sequence[Copy], buffer: memoryview) -> None:
        """Write runs of whole cells. Returns or raises only when no thread reads `buffer` any more."""
        await self._run([functools.partial(self._write, region, run, buffer) for run in _chunks(region, runs)])
        self.bytes_written += sum(run.length for run in runs)

    def close(self) -> None:
        """End the threads and give the room on the disk back; nothing may be in flight."""
        self._threads.shutdown()
        os.close(self._descriptor)

    def _read(self, region: Region, run: Copy, buffer: memoryview) -> None:
        piece, at = buffer[run.source_offset :][: run.length], region.start + run.source_offset
        if (count := os.preadv(self._descriptor, [piece], at)) != run.length:
            raise OSError(errno.EIO, f"need {run.length} bytes at {at}, have {count}", self._name)
        for place, checksum in _sums(region, run, buffer).items():
            if self._checksums.get(place) != checksum:
                need = self._checksums.get(place, 0)
                raise SpillError(
                    f"{self._name}: {region.cell} at byte {place}: need checksum {need:#010x}, have {checksum:#010x}; "
                    "the disk gave back other bytes than were written: put kv_disk elsewhere"
                )

    def _write(self, region: Region, run: Copy, buffer: memoryview) -> None:
        self._checksums.update(_sums(region, run, buffer))
        piece, at = buffer[run.source_offset :][: run.length], region.start + run.source_offset
        if (count := os.pwritev(self._descriptor, [piece], at)) != run.length:
            raise OSError(errno.EIO, f"wrote {count} of {run.length} bytes at {at}", self._name)

    async def _run(self, jobs: Sequence[Callable[[], None]]) -> None:
        loop = asyncio.get_running_loop()
        await outlast([loop.run_in_executor(self._threads, job) for job in jobs])

    @property
    def _name(self) -> str:
        return f"the spill file in {self._folder}"


def _sums(region: Region, run: Copy, buffer: memoryview) -> dict[int, int]:
    """The checksum of each cell of a run, by its place in the file."""
    size = region.cell_bytes
    offsets = range(run.source_offset, run.source_offset + run.length, size)
    return {region.start + offset: zlib.crc32(buffer[offset:][:size]) for offset in offsets}


def _chunks(region: Region, runs: Sequence[Copy]) -> list[Copy]:
    """Cut long runs between cells, so that several threads share them."""
    most = max(1, CHUNK_BYTES // region.cell_bytes) * region.cell_bytes
    return [
        Copy(offset, offset, min(most, run.source_offset + run.length - offset))
        for run in runs
        for offset in range(run.source_offset, run.source_offset + run.length, most)
    ]


def _create(folder: Path) -> int:
    """A new file without a name."""
    try:
        try:
            return os.open(folder, os.O_RDWR | os.O_CLOEXEC | O_TMPFILE, 0o600)
        except OSError as error:
            if error.errno not in NOT_OFFERED | {errno.EISDIR}:
                raise
        descriptor, name = tempfile.mkstemp(prefix="penstock-kv-", dir=folder)
        os.unlink(name)
        return descriptor
    except OSError as error:
        raise _refused(f"kv_disk {folder}: cannot create a file there", error, "; name a folder on a disk") from error


def _allocate(folder: Path, descriptor: int, nbytes: int) -> None:
    """Take the room on the disk now, so that it cannot be missing later. Raises ConfigError where there is none.

    It is done before direct writes are asked for: where a file system has no fallocate, the C library writes a byte
    into every block instead.
    """
    try:
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
        except OSError as error:
            if error.errno not in NOT_OFFERED:
                raise
            disk = os.fstatvfs(descriptor)
            if (free := disk.f_bavail * disk.f_frsize) < nbytes:
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: have {free}") from error
            os.ftruncate(descriptor, nbytes)
            then = f"the {nbytes} bytes for KV blocks are free now, and must stay free while the model is open"
            logger.warning("kv_disk %s: the file system cannot reserve room (%s); %s", folder, error.strerror, then)
    except OSError as error:
        raise _refused(f"kv_disk {folder}: need {nbytes} bytes for KV blocks", error) from error


def _refused(what: str, error: OSError, to_do: str = "") -> PenstockError:
    """Return what is said of a folder, unless it is the process that has reached a limit."""
    reached = None
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        reached = reached_limit(OSError(error.errno, f"{what}: {error.strerror}"))
    return reached or ConfigError(f"{what}: {error.strerror}{to_do}")


def _go_past_the_page_cache(folder: Path, descriptor: int) -> None:
    """Read and write directly from now on, where the file system allows it; a block is written to see whether."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | O_DIRECT)
        with mmap.mmap(-1, BLOCK_BYTES) as block:
            os.pwritev(descriptor, [block], 0)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise ConfigError(f"kv_disk {folder}: cannot be written: {error.strerror}; name another folder") from error
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        then = "KV blocks go through the page cache, which takes host memory"
        logger.warning("kv_disk %s: the file system refuses direct writes (O_DIRECT); %s", folder, then)
