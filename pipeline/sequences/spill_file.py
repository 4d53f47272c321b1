"""KV blocks on the disk: one file without a name, written and read past the page cache, every block checked."""

import asyncio
import errno
import functools
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import ConfigError, PenstockError
from pipeline.threads import outlast
from pipeline.weights.layout import Copy
from pipeline.weights.shard import O_DIRECT

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
            os.posix_fallocate(self._descriptor, 0, nbytes)
        except OSError as error:
            os.close(self._descriptor)
            raise ConfigError(f"kv_disk {folder}: need {nbytes} bytes for KV blocks: {error.strerror}") from error
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="penstock-kv-disk")

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
        piece = buffer[run.source_offset :][: run.length]
        if (count := os.preadv(self._descriptor, [piece], start + run.source_offset)) != run.length:
            raise OSError(
                errno.EIO, f"need {run.length} bytes at {start + run.source_offset}, have {count}", self._name
            )
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
    """A new file without a name, read and written past the page cache where the file system allows it."""
    try:
        try:
            return _nameless(folder, O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL or not O_DIRECT:
                raise
            logger.warning(
                "kv_disk %s: the file system refuses direct writes (O_DIRECT); KV blocks go through the page cache, "
                "which takes host memory",
                folder,
            )
            return _nameless(folder, 0)
    except OSError as error:
        raise ConfigError(
            f"kv_disk {folder}: cannot create a file there: {error.strerror}; name a folder on a disk"
        ) from error


def _nameless(folder: Path, flags: int) -> int:
    try:
        return os.open(folder, os.O_RDWR | O_TMPFILE | flags, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    descriptor, name = tempfile.mkstemp(prefix="penstock-kv-", dir=folder)
    os.close(descriptor)
    try:
        return os.open(name, os.O_RDWR | flags)
    finally:
        os.unlink(name)
