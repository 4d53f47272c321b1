"""Single rows of a weight file: few bytes, in no order, and often the same ones again, as words are."""

import asyncio
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import CheckpointError, ClosedError
from pipeline.groups.layout import row_window
from pipeline.reading.reading_lane import Disk
from pipeline.system.page_cache import advise
from pipeline.system.threads import Threads, outlast


class RowReader:
    """One thread that reads rows through the page cache, so that what comes again costs no read of the disk.

    The operating system is told of all rows of a call before the first is read, so they are all in flight at a time,
    and behind no more than what the lanes of whole groups have in flight. `bytes_needed` counts the bytes of reads that
    have arrived whole, `bytes_read` what came from the file.
    """

    def __init__(self, disk: Disk) -> None:
        self.bytes_read = 0
        self.bytes_needed = 0
        self._disk = disk
        self._thread = Threads(1, "penstock-rows")
        self.closed = False

    async def read(
        self, file: Path, starts: Sequence[int], row_bytes: int, buffer: memoryview, *, once: bool = False
    ) -> None:
        """Read the `row_bytes` of `file` from each of `starts`, one row behind the other, into any memory.

        Rows that are read only `once` leave the page cache behind that, on the thread: to come back from the event loop
        for it, which launches passes, would take longer.
        Returns, raises or passes a cancellation on only when the thread writes into `buffer` no more.

        Raises:
            CheckpointError: a row lies beyond the end, or the file is not what it was when its header was read.
            OSError: the disk failed; the message names the offset and the file.
            ClosedError: it is `closed`.
        """
        self._check_open()
        if (end := max(starts) + row_bytes) > (size := self._disk.files[file].size):
            raise CheckpointError(f"{file}: need bytes {end - row_bytes} to {end}, have {size}")
        loop = asyncio.get_running_loop()
        await outlast([loop.run_in_executor(self._thread, self._read, file, starts, row_bytes, buffer, once)])
        self.bytes_needed += row_bytes * len(starts)

    async def forget(self, file: Path, starts: Sequence[int], row_bytes: int) -> None:
        """Take rows out of the page cache, so that they come from the disk when they are read next."""
        self._check_open()
        loop = asyncio.get_running_loop()
        await outlast([loop.run_in_executor(self._thread, self._forget, file, starts, row_bytes)])

    async def aclose(self) -> None:
        """Wait for what is in flight, and end the thread. Closing twice is harmless."""
        self.closed = True
        await asyncio.to_thread(self._thread.shutdown)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("the weight source is closed")

    def _read(self, file: Path, starts: Sequence[int], row_bytes: int, buffer: memoryview, once: bool) -> None:
        for start in starts:
            advise(self._disk.files[file].buffered, start, row_bytes, "POSIX_FADV_WILLNEED")
        for index, start in enumerate(starts):
            self._read_row(file, start, buffer[index * row_bytes :][:row_bytes])
        self._disk.check_unchanged(file, starts[-1] + row_bytes)
        if once:
            self._forget(file, starts, row_bytes)

    def _forget(self, file: Path, starts: Sequence[int], row_bytes: int) -> None:
        for start in starts:
            advise(self._disk.files[file].buffered, *row_window(start, row_bytes), "POSIX_FADV_DONTNEED")

    def _read_row(self, file: Path, start: int, row: memoryview) -> None:
        position, end = start, start + len(row)
        try:
            while position < end:
                # Into its place: to copy it there would hold the interpreter, which passes need.
                count = os.preadv(self._disk.files[file].buffered, [row[position - start :]], position)
                if not count:
                    self._disk.check_unchanged(file, position)
                    raise OSError(errno.EIO, "no more bytes, though the file goes on")
                position += count
                self.bytes_read += count
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: at byte {position}", str(file)) from error
