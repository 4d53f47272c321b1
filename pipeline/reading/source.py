"""The weight source: whole groups and single rows, from files into memory, with several reads in flight."""

import asyncio
import ctypes
import logging
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actors.core.message import GroupKey
from actors.core.ports import Copy, Perhaps
from pipeline.checkpoints.shard import Shard
from pipeline.errors import CheckpointError, ClosedError, ConfigError
from pipeline.groups.layout import HostLayout, Window
from pipeline.reading.checksums import Checksums
from pipeline.reading.lanes import LANES
from pipeline.reading.reading import Reading
from pipeline.reading.reading_lane import Disk
from pipeline.reading.rows import RowReader
from pipeline.system.page_cache import BLOCK_BYTES
from pipeline.system.threads import Threads, outlast

if TYPE_CHECKING:
    from pipeline.devices.memory import HostMemory

logger = logging.getLogger("penstock")


class CheckpointSource:
    """Reads weight groups past the page cache into host slots; `rows` reads single rows, beside them.

    Several `read_into` calls may be in flight: lanes serve them in call order, and a lane that finds no chunk left in
    one call goes on with the next call at once, so the disk's queue does not drain between groups. With `checksums`
    each chunk is summed up as it lands, beside the reads of those behind it.
    """

    def __init__(
        self,
        layouts: Mapping[GroupKey, HostLayout],
        files: Mapping[Path, Shard],
        reading: Reading,
        checksums: Checksums | None = None,
    ) -> None:
        self.reading = reading
        self.checksums = checksums
        self._layouts = layouts
        self._files = files
        self._disk = Disk(files, reading.direct)
        self._lanes = LANES[reading.way]("penstock-disk", reading.lanes, self._disk)
        self.rows = RowReader(self._disk)
        self._movers = Threads(reading.lanes, "penstock-moves")
        self._closed = False
        self._bytes_needed = 0
        self._group_bytes: Counter[GroupKey] = Counter()
        self._failed_ahead: set[GroupKey] = set()
        self._groups_in_flight = 0
        self._groups_read = 0
        self._rests = asyncio.Event()

    @property
    def bytes_needed(self) -> int:
        """Bytes of the tensors and rows that have arrived whole: what `bytes_read` would be without padding."""
        return self._bytes_needed + self.rows.bytes_needed

    @property
    def bytes_read(self) -> int:
        """Bytes that came from files, padding and repeated reads included."""
        return self._lanes.bytes_read + self.rows.bytes_read

    def bytes_of(self, keys: Container[GroupKey]) -> int:
        """Bytes of these groups that have arrived whole, padding included."""
        return sum(nbytes for key, nbytes in self._group_bytes.items() if key in keys)

    async def read_into(self, key: GroupKey, buffer: "HostMemory") -> None:
        """Read all windows of a group into `buffer`, a host slot whose address is a multiple of 4096.

        Returns, raises or passes a cancellation on only when no thread writes into `buffer` any more; after an error or
        a cancellation no further chunk is begun.

        Raises:
            CheckpointError: a file was truncated or changed since it was opened, or the group's bytes differ from those
                of its first read, and still do when they are read once more.
            OSError: the disk failed twice at one place.
        """
        await self._read_group(key, buffer, None)

    async def read_while_idle(self, key: GroupKey, buffer: "HostMemory", guess: Perhaps) -> None:
        """As `read_into` once the guess is right. Until that is known, read when a lane has nothing else to begin.

        The bytes of a wrong guess are not whole. An error waits until the guess is decided: it is raised where that is
        right, and logged where it is wrong. From then on the group is read only once it is wanted, until that has
        worked: a damaged place of the disk takes no time of passes that do not need it, and is told of once.
        """
        if key in self._failed_ahead:
            await _decided(guess)
            if guess.goes_on():
                await self.read_into(key, buffer)
            return
        try:
            await self._read_group(key, buffer, guess)
        except (OSError, CheckpointError) as error:
            self._failed_ahead.add(key)
            await _decided(guess)
            if guess.goes_on():
                raise
            then = "it was not needed, and is read again when it is"
            logger.warning("layer %d %s could not be read ahead (%s): %s", *key, then, error)

    def hand_over(self) -> None:
        """Let threads begin with reads that were asked for, before this one works on; blocks it for a moment."""
        self._lanes.hand_over()

    async def rested(self, groups: int) -> None:
        """Wait until no group is being read, or so many have been read since the source was opened."""
        while self._groups_in_flight and self._groups_read < groups:
            self._rests.clear()
            await self._rests.wait()

    async def aclose(self) -> None:
        """Wait for the reads in flight, and end the threads. Closing twice is harmless; the files stay open."""
        self._closed = self.rows.closed = True
        await self._lanes.aclose()
        await self.rows.aclose()
        await asyncio.to_thread(self._movers.shutdown)
        if self.checksums is not None:
            await self.checksums.aclose()

    async def _read_group(self, key: GroupKey, buffer: "HostMemory", guess: Perhaps | None) -> None:
        layout = self._layouts[key]
        view = buffer.view
        self._check(view, layout.slot_bytes)
        self._groups_in_flight += 1
        try:
            await self._read(key, tuple(self._chunks(layout)), view, guess)
            if guess is not None and not guess.goes_on():
                return
            await self._move(layout.moves, view)
        finally:
            self._groups_in_flight -= 1
            self._rests.set()
        self._failed_ahead.discard(key)
        self._groups_read += 1
        self._bytes_needed += layout.needed_bytes
        self._group_bytes[key] += sum(self._length(window) for window in layout.windows)

    async def _read(self, key: GroupKey, chunks: Sequence[Window], view: memoryview, guess: Perhaps | None) -> None:
        if self.checksums is None:
            await self._lanes.read(chunks, view, guess=guess)
            return
        if (fault := await self._read_and_compare(self.checksums, key, chunks, view, guess)) is None:
            return
        logger.warning("layer %d %s differs from its first read, reading once more: %s", *key, fault)
        if (fault := await self._read_and_compare(self.checksums, key, chunks, view, guess)) is not None:
            raise fault

    async def _read_and_compare(
        self, checksums: Checksums, key: GroupKey, chunks: Sequence[Window], view: memoryview, guess: Perhaps | None
    ) -> CheckpointError | None:
        sums = checksums.begin(key, chunks, view)
        try:
            await self._lanes.read(chunks, view, sums.add, guess)
        finally:
            await sums.ended()
        return checksums.compare(sums) if guess is None or guess.goes_on() else None

    async def _move(self, moves: Sequence[Copy], view: memoryview) -> None:
        """Move tensors to addresses that their items can have in memory, all at a time, on threads."""
        loop, address = asyncio.get_running_loop(), _address(view)
        await outlast([loop.run_in_executor(self._movers, _move, address, move) for move in moves])

    def _length(self, window: Window) -> int:
        """The bytes of a window that are in its file: the last block may reach beyond the end."""
        return min(window.length, self._files[window.file].size - window.start)

    def _chunks(self, layout: HostLayout) -> Iterator[Window]:
        for window in layout.windows:
            for done in range(0, window.length, self.reading.chunk_bytes):
                length = min(self.reading.chunk_bytes, window.length - done)
                yield Window(window.file, window.start + done, length, window.slot_offset + done)

    def _check(self, buffer: memoryview, slot_bytes: int) -> None:
        if self._closed:
            raise ClosedError("the weight source is closed")
        if len(buffer) < slot_bytes:
            raise ConfigError(f"the host slot is too small: need {slot_bytes} bytes, have {len(buffer)}")
        if self._disk.direct and (address := _address(buffer)) % BLOCK_BYTES:
            raise ConfigError(f"the host slot begins at address {address:#x}; direct reads need a multiple of 4096")


async def _decided(guess: Perhaps) -> None:
    """Wait until it is known whether a guess that is not being read is right."""
    known = asyncio.Event()
    guess.decided = known.set
    if guess.wanted is None:
        await known.wait()


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _move(address: int, move: Copy) -> None:
    """Move bytes by ctypes, which lets go of the interpreter lock; source and target may overlap."""
    ctypes.memmove(address + move.target_offset, address + move.source_offset, move.length)
