"""Reading lanes: each is one thread with one read in flight, and one open handle per weight file."""

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from aiofiles.threadpool import wrap
from aiofiles.threadpool.binary import AsyncFileIO

from pipeline.errors import CheckpointError
from pipeline.weights.checkpoint import FileIdentity
from pipeline.weights.layout import BLOCK_BYTES

logger = logging.getLogger("penstock")
O_DIRECT = getattr(os, "O_DIRECT", 0)
Result = TypeVar("Result")


@dataclass(slots=True)
class Disk:
    """What the lanes of one source share: the files as they were opened, and counters of what was really read."""

    files: Mapping[Path, FileIdentity]
    direct: bool
    bytes_read: int = 0
    reads: int = 0
    unlinked: set[Path] = field(default_factory=set)

    def refuse_direct(self, file: Path) -> None:
        """Read through the page cache from now on, and say so once."""
        if self.direct:
            self.direct = False
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
        if status.st_nlink == 0 and file not in self.unlinked:
            self.unlinked.add(file)
            logger.warning("%s: was deleted or replaced; going on with the file as it was opened", file)


class Lane:
    """One thread, and so at most one read in flight.

    A thread cannot be stopped in the middle of a read. So every wait for it lasts until it is done with the buffer,
    cancelled or not (rule 6).
    """

    def __init__(self, name: str, disk: Disk) -> None:
        self._disk = disk
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._handles: dict[Path, AsyncFileIO] = {}
        self._direct_files: set[Path] = set()

    async def read(self, file: Path, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `file` from `start` on, as far as the file goes.

        Raises:
            CheckpointError: the file is not what it was when its header was read.
            OSError: the disk failed; the message names the offset and the file.
        """
        end = min(start + len(buffer), self._disk.files[file].size)
        position = start
        while position < end:
            try:
                position += await self._read_once(file, position, buffer[position - start :], end)
            except OSError as error:
                what = f"{error.strerror}: at byte {position}, reading {start} to {end}"
                raise OSError(error.errno, what, str(file)) from error
        self._check_unchanged(file, end)

    async def _read_once(self, file: Path, position: int, rest: memoryview, end: int) -> int:
        """The bytes that the kernel gave at once; 0 when it refused a direct read, which the next one will not be."""
        try:
            handle = await self._handle(file)
            os.lseek(handle.fileno(), position, os.SEEK_SET)
            count = await self._finish(handle.readinto(rest)) or 0
        except OSError as error:
            if error.errno != errno.EINVAL or file not in self._direct_files:
                raise
            self._disk.refuse_direct(file)
            self._go_on_buffered(file)
            return 0
        self._disk.reads += 1
        self._disk.bytes_read += count
        if file not in self._direct_files:
            await self._drop_cached(handle, position, count)
        elif position + count < end:
            count -= count % BLOCK_BYTES  # the next direct read must begin at a block again
        if not count:
            self._check_unchanged(file, position)
            raise OSError(errno.EIO, "no more bytes, though the file goes on")
        return count

    async def _handle(self, file: Path) -> AsyncFileIO:
        if file not in self._handles:
            await self._finish(asyncio.get_running_loop().run_in_executor(self._thread, self._open, file))
        return self._handles[file]

    def _check_unchanged(self, file: Path, position: int) -> None:
        self._disk.check_unchanged(file, os.fstat(self._handles[file].fileno()), position)

    def _open(self, file: Path) -> None:
        """In the lane's thread, and filed from there, so that a cancelled wait loses no open file."""
        if self._disk.direct:
            self._direct_files.add(file)
        opener = _open_direct if self._disk.direct else None
        raw = open(file, "rb", buffering=0, opener=opener)  # noqa: SIM115 (aclose closes it)
        self._handles[file] = wrap(raw, executor=self._thread)

    def _go_on_buffered(self, file: Path) -> None:
        self._direct_files.discard(file)
        if file in self._handles:
            import fcntl  # only where there is O_DIRECT

            descriptor = self._handles[file].fileno()
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~O_DIRECT)

    async def _drop_cached(self, handle: AsyncFileIO, position: int, count: int) -> None:
        if hasattr(os, "posix_fadvise"):
            advice = (handle.fileno(), position, count, os.POSIX_FADV_DONTNEED)
            loop = asyncio.get_running_loop()
            await self._finish(loop.run_in_executor(self._thread, os.posix_fadvise, *advice))

    async def _finish(self, work: Awaitable[Result]) -> Result:
        try:
            return await work
        except asyncio.CancelledError:
            idle = asyncio.get_running_loop().run_in_executor(self._thread, _nothing)
            while not idle.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([idle])
            raise

    async def aclose(self) -> None:
        """Close the handles and end the thread; no read may be in flight."""
        while self._handles:
            file = next(iter(self._handles))
            await self._finish(self._handles[file].close())
            del self._handles[file]
        self._thread.shutdown()


class Lanes:
    """`count` lanes, lent first come first served."""

    def __init__(self, name: str, count: int, disk: Disk) -> None:
        self.count = count
        self._idle = [Lane(f"{name}-{index}", disk) for index in range(count)]
        self._free = asyncio.Semaphore(count)

    @contextlib.asynccontextmanager
    async def lend(self) -> AsyncIterator[Lane]:
        """A lane for the time of the `async with`."""
        async with self._free:
            lane = self._idle.pop()
            try:
                yield lane
            finally:
                self._idle.append(lane)

    async def aclose(self) -> None:
        """Wait until all lanes are idle and close them. Closing twice is harmless."""
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(self.count):
                lane = await stack.enter_async_context(self.lend())
                await lane.aclose()


def _open_direct(path: str, flags: int) -> int:
    if not O_DIRECT:
        raise OSError(errno.EINVAL, "this operating system has no direct reads", path)
    return os.open(path, flags | O_DIRECT)


def _nothing() -> None:
    pass
