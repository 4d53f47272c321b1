"""Single rows of a weight file: few bytes, in no order, and often the same ones again, as words are."""

import asyncio
import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.threads import outlast
from pipeline.weights.lane import Disk


class Rows:
    """One thread that reads rows through the page cache, so that what comes again costs no read of the disk.

    The operating system is told of all rows of a call before the first is read, so they are all in flight at a time,
    and behind no more than what the lanes of whole groups have in flight.
    """

    def __init__(self, disk: Disk) -> None:
        self.bytes_read = 0
        self._disk = disk
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="penstock-rows")
        self._handles: dict[Path, FileIO] = {}

    async def read(self, file: Path, starts: Sequence[int], row_bytes: int, buffer: memoryview) -> None:
        """Read the `row_bytes` of `file` from each of `starts`, one row behind the other, into any memory.

        Returns, raises or passes a cancellation on only when the thread writes into `buffer` no more.

        Raises:
            CheckpointError: a row lies beyond the end, or the file is not what it was when its header was read.
            OSError: the disk failed; the message names the offset and the file.
        """
        if (end := max(starts) + row_bytes) > (size := self._disk.files[file].size):
            raise CheckpointError(f"{file}: need bytes {end - row_bytes} to {end}, have {size}")
        loop = asyncio.get_running_loop()
        await outlast([loop.run_in_executor(self._thread, self._read, file, starts, row_bytes, buffer)])

    async def aclose(self) -> None:
        """Wait for what is in flight, end the thread and close the files. Closing twice is harmless."""
        await asyncio.to_thread(self._thread.shutdown)
        while self._handles:
            self._handles.popitem()[1].close()

    def _read(self, file: Path, starts: Sequence[int], row_bytes: int, buffer: memoryview) -> None:
        handle = self._handle(file)
        if hasattr(os, "posix_fadvise"):
            for start in starts:
                os.posix_fadvise(handle.fileno(), start, row_bytes, os.POSIX_FADV_WILLNEED)
        for index, start in enumerate(starts):
            self._read_row(file, handle, start, buffer[index * row_bytes :][:row_bytes])
        self._disk.check_unchanged(file, os.fstat(handle.fileno()), starts[-1] + row_bytes)

    def _read_row(self, file: Path, handle: FileIO, start: int, row: memoryview) -> None:
        position, end = start, start + len(row)
        try:
            while position < end:
                handle.seek(position)
                if not (count := handle.readinto(row[position - start :])):
                    self._disk.check_unchanged(file, os.fstat(handle.fileno()), position)
                    raise OSError(errno.EIO, "no more bytes, though the file goes on")
                position += count
                self.bytes_read += count
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: at byte {position}", str(file)) from error

    def _handle(self, file: Path) -> FileIO:
        """Only in the thread. Neighbours of a row are of no use, so nothing is read ahead."""
        if file not in self._handles:
            self._handles[file] = FileIO(file)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._handles[file].fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        return self._handles[file]
