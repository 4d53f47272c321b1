"""A reading lane: what one thread with one read in flight does. The files are open, and all lanes share them.

The siblings `preadv_lanes` and `aiofiles_lanes` hand reads to the threads; here is what a read itself does.
"""

import errno
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from actors.core.ports import Perhaps
from pipeline.checkpoints.shard import FileIdentity, Shard
from pipeline.errors import CheckpointError
from pipeline.groups.layout import Window
from pipeline.system.guard import Once
from pipeline.system.page_cache import BLOCK_BYTES, NOT_OFFERED, drop_cached

logger = logging.getLogger("penstock")
Landed: TypeAlias = Callable[[Window], None]
"""Called for each chunk once it is whole, by its lane: on any thread, and before the call for chunks ends."""


def unheeded(chunk: Window) -> None:
    """For reads of which no chunk is reported."""


STEP_BYTES = 4 << 20
"""The part of a guess that is read at a time: about what a disk of 2 GB/s gives in the 2 ms until it is decided."""


def step_bytes(guess: Perhaps | None) -> int | None:
    """How many bytes may be read next, None for all: a step until a guess is decided, and 0 of a wrong one."""
    if guess is None or guess.wanted:
        return None
    return STEP_BYTES if guess.goes_on() else 0


class Disk:
    """The lanes of a source share this: files, whether they are read past the page cache, and warnings given."""

    def __init__(self, files: Mapping[Path, Shard], direct: bool) -> None:
        self.files = files
        self.direct = direct
        self._is_first_unlink = Once()
        self._lock = threading.Lock()
        for shard in files.values() if direct else ():
            if shard.direct is None:
                self.refuse_direct(shard.path, shard.refusal)

    def refuse_direct(self, file: Path, why: str) -> None:
        """Read through the page cache from now on, and say so once."""
        with self._lock:
            refused_before, self.direct = not self.direct, False
        if not refused_before:
            then = "weights are read through the page cache, which is slower and takes host memory"
            logger.warning("%s: the file system refuses direct reads (O_DIRECT: %s); %s", file, why, then)

    def check_unchanged(self, file: Path, position: int) -> None:
        """Raise unless the file is what it was when it was opened."""
        status = os.fstat(self.files[file].buffered)
        opened, now = self.files[file].identity, FileIdentity.of(status)
        if now != opened:
            truncated = now.inode == opened.inode and now.size < opened.size
            fault = "truncated" if truncated else "weights changed"
            need, have = (f"{opened.size} bytes", f"{now.size}") if truncated else (opened, now)
            raise CheckpointError(f"{file}: {fault} while running, seen at byte {position}: need {need}, have {have}")
        if status.st_nlink == 0 and self._is_first_unlink(file):
            logger.warning("%s: was deleted or replaced; going on with the file as it was opened", file)


class ReadingLane:
    """Has one thread, and so at most one read in flight; `bytes_read` counts what came of all."""

    def __init__(self, disk: Disk) -> None:
        self.bytes_read = 0
        self._disk = disk

    def _end(self, chunk: Window) -> int:
        return min(chunk.start + chunk.length, self._disk.files[chunk.file].size)

    def _read(self, chunk: Window, position: int, buffer: memoryview, most: int | None = None) -> int:
        """Read from `position` on, `most` bytes at most, on the lane's thread, and tell how far that brings the chunk.

        What failed is tried once more, and at once: other threads may hang in reads of the same disk.
        """
        try:
            return self._read_once(chunk, position, buffer, most)
        except OSError as error:
            logger.warning("a read failed, trying once more: %s", error)
            return self._read_once(chunk, position, buffer, most)

    def _read_once(self, chunk: Window, position: int, buffer: memoryview, most: int | None) -> int:
        """As `_read`, once. Returns 0 when the kernel refused a direct read: the next goes through the page cache."""
        shard = self._disk.files[chunk.file]
        direct = shard.direct if self._disk.direct else None
        begin, end = chunk.slot_offset + position - chunk.start, chunk.slot_offset + chunk.length
        rest = buffer[begin : end if most is None else min(end, begin + most)]
        try:
            count = advance = os.preadv(shard.buffered if direct is None else direct, [rest], position)
            if direct is not None and position + count < self._end(chunk):
                advance -= count % BLOCK_BYTES  # the next direct read must begin at a block again
            if not advance:
                self._disk.check_unchanged(chunk.file, position)
                raise OSError(errno.EIO, "no more bytes, though the file goes on")
        except OSError as error:
            if direct is not None and error.errno in NOT_OFFERED:
                self._disk.refuse_direct(chunk.file, str(error.strerror))
                return 0
            what = f"{error.strerror}: at byte {position}, reading {chunk.start} to {self._end(chunk)}"
            raise OSError(error.errno, what, str(chunk.file)) from error
        self.bytes_read += count
        if direct is None:
            drop_cached(shard.buffered, position, position + count)
        return advance


SomeLane = TypeVar("SomeLane", bound=ReadingLane, covariant=True)


class ReadingLanes(ABC, Generic[SomeLane]):
    """Lanes that serve calls in the order in which they came.

    A lane that finds nothing left to begin in one call goes on with the next at once. A thread cannot be stopped in the
    middle of a read: every wait for it lasts until it is done with the buffer, cancelled or not (rule 6).
    """

    def __init__(self, lanes: Sequence[SomeLane]) -> None:
        self._lanes = lanes

    @property
    def bytes_read(self) -> int:
        """Bytes that came from files."""
        return sum(lane.bytes_read for lane in self._lanes)

    @abstractmethod
    async def read(
        self, chunks: Sequence[Window], buffer: memoryview, landed: Landed = unheeded, guess: Perhaps | None = None
    ) -> None:
        """Read these chunks into `buffer`. After an error or a cancellation no further one is begun.

        A `guess` is read by one lane, one guess at a time, as soon as no other read waits for a lane or the guess is
        right. Of a wrong one only the step under way is read to its end, so its bytes are not whole.

        Raises:
            CheckpointError: a file is not what it was when its header was read.
            OSError: the disk failed twice at one place; the message names the offset and the file.
        """

    def hand_over(self) -> None:
        """Block this thread, for less than a millisecond, until threads have begun with what they were asked for.

        They need the interpreter lock, and get it late from a thread that goes on working.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Wait until nothing is read any more, and end the threads. Closing twice is harmless."""
