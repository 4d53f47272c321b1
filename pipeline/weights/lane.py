"""A reading lane: what one thread with one read in flight holds, an open descriptor per weight file.

Siblings (`preadv_lanes`, `aiofiles_lanes`) say how reads get to the threads; what a read has to heed is said here.
"""

import errno
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from pipeline.errors import CheckpointError
from pipeline.weights.checkpoint import FileIdentity
from pipeline.weights.layout import BLOCK_BYTES

logger = logging.getLogger("penstock")
O_DIRECT = getattr(os, "O_DIRECT", 0)


class Chunk(NamedTuple):
    """What one lane reads at once: `length` bytes of a file, as far as the file goes, to an offset in the buffer."""

    file: Path
    start: int
    length: int
    slot_offset: int


@dataclass(slots=True)
class Disk:
    """What the lanes of one source share: the files as they were opened, and what was said about them."""

    files: Mapping[Path, FileIdentity]
    direct: bool
    unlinked: set[Path] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def refuse_direct(self, file: Path) -> None:
        """Read through the page cache from now on, and say so once."""
        with self._lock:
            refused_before, self.direct = not self.direct, False
        if not refused_before:
            logger.warning(
                "%s: the file system refuses direct reads (O_DIRECT); weights are read through the page cache, "
                "which is slower and takes host memory",
                file,
            )

    def check_unchanged(self, file: Path, status: os.stat_result, position: int) -> None:
        """Raise unless `status`, from a handle of `file`, is what the file was when its header was read."""
        opened, now = self.files[file], FileIdentity.of(status)
        if now != opened:
            truncated = now.inode == opened.inode and now.size < opened.size
            fault = "truncated" if truncated else "weights changed"
            need, have = (f"{opened.size} bytes", f"{now.size}") if truncated else (opened, now)
            raise CheckpointError(f"{file}: {fault} while running, seen at byte {position}: need {need}, have {have}")
        if status.st_nlink == 0:
            with self._lock:
                new = file not in self.unlinked
                self.unlinked.add(file)
            if new:
                logger.warning("%s: was deleted or replaced; going on with the file as it was opened", file)


class Lane:
    """The files of one thread, and so at most one read in flight. `reads` returned bytes, `bytes_read` in all."""

    def __init__(self, disk: Disk) -> None:
        self.reads = 0
        self.bytes_read = 0
        self._disk = disk
        self._descriptors: dict[Path, int] = {}
        self._direct_files: set[Path] = set()

    def _descriptor(self, file: Path) -> int:
        """Only in the lane's thread; filed at once, so that a cancelled wait loses no open file."""
        if file not in self._descriptors:
            direct = self._disk.direct
            try:
                self._descriptors[file] = open_descriptor(file, direct)
            except OSError as error:
                if error.errno != errno.EINVAL or not direct:
                    raise
                self._disk.refuse_direct(file)
                self._descriptors[file] = open_descriptor(file, False)
            else:
                self._direct_files |= {file} if direct else set()
        return self._descriptors[file]

    def _end(self, chunk: Chunk) -> int:
        return min(chunk.start + chunk.length, self._disk.files[chunk.file].size)

    def _took(self, chunk: Chunk, position: int, count: int) -> int:
        """How far `count` bytes at `position`, which the kernel gave at once, bring the chunk. Raises when nowhere."""
        self.reads += 1
        self.bytes_read += count
        if chunk.file in self._direct_files and position + count < self._end(chunk):
            count -= count % BLOCK_BYTES  # the next direct read must begin at a block again
        if not count:
            self._check_unchanged(chunk.file, position)
            raise OSError(errno.EIO, "no more bytes, though the file goes on")
        return count

    def _failed(self, chunk: Chunk, position: int, error: OSError) -> None:
        """Go on through the page cache where the kernel refused a direct read; raise all else, with its place."""
        if error.errno == errno.EINVAL and chunk.file in self._direct_files:
            import fcntl  # only where there is O_DIRECT

            self._disk.refuse_direct(chunk.file)
            self._direct_files.discard(chunk.file)
            descriptor = self._descriptors[chunk.file]
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~O_DIRECT)
            return
        what = f"{error.strerror}: at byte {position}, reading {chunk.start} to {self._end(chunk)}"
        raise OSError(error.errno, what, str(chunk.file)) from error

    def _check_unchanged(self, file: Path, position: int) -> None:
        self._disk.check_unchanged(file, os.fstat(self._descriptors[file]), position)

    def _drop_cached(self, file: Path, position: int, count: int) -> None:
        drop_cached(self._descriptors[file], position, count)

    def close(self) -> None:
        """Close the files; no read may be in flight. Closing twice is harmless."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


SomeLane = TypeVar("SomeLane", bound=Lane, covariant=True)


class Lanes(ABC, Generic[SomeLane]):
    """So many lanes that serve calls in the order in which they came.

    A lane that finds nothing left to begin in one call goes on with the next at once. A thread cannot be stopped in the
    middle of a read: every wait for it lasts until it is done with the buffer, cancelled or not (rule 6).
    """

    def __init__(self, lanes: Sequence[SomeLane]) -> None:
        self._lanes = lanes

    @property
    def bytes_read(self) -> int:
        """Bytes that came from files."""
        return sum(lane.bytes_read for lane in self._lanes)

    @property
    def reads(self) -> int:
        """Reads that returned bytes."""
        return sum(lane.reads for lane in self._lanes)

    @abstractmethod
    async def read(self, chunks: Sequence[Chunk], buffer: memoryview) -> None:
        """Read these chunks into `buffer`. After an error or a cancellation no further one is begun.

        Raises:
            CheckpointError: a file is not what it was when its header was read.
            OSError: the disk failed; the message names the offset and the file.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Wait until nothing is read any more, close all files and end the threads. Closing twice is harmless."""


def open_descriptor(file: Path, direct: bool) -> int:
    """Open a file for reading. Raises OSError, with EINVAL where direct reads are refused."""
    if direct and not O_DIRECT:
        raise OSError(errno.EINVAL, "this operating system has no direct reads", str(file))
    return os.open(file, os.O_RDONLY | os.O_CLOEXEC | (O_DIRECT if direct else 0))


def drop_cached(descriptor: int, start: int, length: int) -> None:
    """Take these bytes of a file out of the page cache, where the operating system can."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
