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


class SpillFile:
    """Room for blocks of `block_bytes` each, a multiple of 4096, at byte offsets that are multiples of it.

    The file has no name, so that nothing is left behind however the process ends. `bytes_read` and `bytes_written`
    count what really moved.
    """

    def __init__(self, folder: Path, nbytes: int, block_bytes: int) -> None:
        self.bytes_read = 0
        self.bytes_written = 0
        self._folder = folder
        self._block_bytes = block_bytes
        self._checksums: dict[int, int] = {}
        self._descriptor = _create(folder)
        try:
            _allocate(folder, self._descriptor, nbytes)
            _go_past_the_page_cache(folder, self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._threads = Threads(THREADS, "penstock-kv-disk")

    async def read(self, start: int, runs: Sequence[Copy], buffer: memoryview) -> None:
        """Read runs of whole blocks, which lie in the file from `start` on as they will lie in `buffer`.

        Returns or raises only when no thread writes into `buffer` any more.

        Raises:
            SpillError: a block is not what was written.
            OSError: the disk failed.
        """
        await self._run([functools.partial(self._read, start, run, buffer) for run in self._chunks(runs)])
        self.bytes_read += sum(run.length for run in runs)

    async def write(self, start: int, runs: Sequence[Copy], buffer: memoryview) -> None:
        """Write runs of whole blocks. Returns or raises only when no thread reads `buffer` any more."""
        await self._run([functools.partial(self._write, start, run, buffer) for run in self._chunks(runs)])
        self.bytes_written += sum(run.length for run in runs)

    def close(self) -> None:
        """End the threads and give the room on the disk back; nothing may be in flight."""
        self._threads.shutdown()
        os.close(self._descriptor)

    def _read(self, start: int, run: Copy, buffer: memoryview) -> None:
        piece, at = buffer[run.source_offset :][: run.length], start + run.source_offset
        if (count := os.preadv(self._descriptor, [piece], at)) != run.length:
            raise OSError(errno.EIO, f"need {run.length} bytes at {at}, have {count}", self._name)
        for place, checksum in self._sums(start, run, buffer).items():
            if self._checksums.get(place) != checksum:
                need = self._checksums.get(place, 0)
                raise SpillError(
                    f"{self._name}: KV block at byte {place}: need checksum {need:#010x}, have {checksum:#010x}; the "
                    "disk gave back other bytes than were written: put kv_disk elsewhere"
                )

    def _write(self, start: int, run: Copy, buffer: memoryview) -> None:
        self._checksums.update(self._sums(start, run, buffer))
        piece = buffer[run.source_offset :][: run.length]
        if (count := os.pwritev(self._descriptor, [piece], start + run.source_offset)) != run.length:
            raise OSError(errno.EIO, f"wrote {count} of {run.length} bytes at {start + run.source_offset}", self._name)

    def _sums(self, start: int, run: Copy, buffer: memoryview) -> dict[int, int]:
        offsets = range(run.source_offset, run.source_offset + run.length, self._block_bytes)
        return {start + offset: zlib.crc32(buffer[offset:][: self._block_bytes]) for offset in offsets}

    def _chunks(self, runs: Sequence[Copy]) -> list[Copy]:
        """Cut long runs at block boundaries, so that several threads share them."""
        most = max(1, CHUNK_BYTES // self._block_bytes) * self._block_bytes
        return [
            Copy(offset, offset, min(most, run.source_offset + run.length - offset))
            for run in runs
            for offset in range(run.source_offset, run.source_offset + run.length, most)
        ]

    async def _run(self, jobs: Sequence[Callable[[], None]]) -> None:
        loop = asyncio.get_running_loop()
        await outlast([loop.run_in_executor(self._threads, job) for job in jobs])

    @property
    def _name(self) -> str:
        return f"the spill file in {self._folder}"


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
