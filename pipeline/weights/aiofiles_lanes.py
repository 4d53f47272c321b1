"""The way "aiofiles": the event loop asks a thread for every single read."""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import TypeVar

from aiofiles.threadpool import wrap
from aiofiles.threadpool.binary import AsyncFileIO

from pipeline.weights.lane import Chunk, Disk, Lane, Lanes

Result = TypeVar("Result")


class AiofilesLanes(Lanes["AiofilesLane"]):
    """Lends its lanes to calls, each of which shares its chunks out among those that it gets."""

    def __init__(self, name: str, count: int, disk: Disk) -> None:
        super().__init__([AiofilesLane(f"{name}-{index}", disk) for index in range(count)])
        self._idle = list(self._lanes)
        self._free = asyncio.Semaphore(count)
        self._closing = asyncio.Lock()

    async def read(self, chunks: Sequence[Chunk], buffer: memoryview) -> None:
        """As `Lanes.read`."""
        shared = deque(chunks)
        workers = [self._read_shared(shared, buffer) for _ in range(min(len(chunks), len(self._lanes)))]
        # With return_exceptions a gather ends only after its last worker, even when it is cancelled.
        for outcome in await asyncio.gather(*workers, return_exceptions=True):
            if outcome is not None:
                raise outcome

    async def aclose(self) -> None:
        """As `Lanes.aclose`."""
        async with self._closing, contextlib.AsyncExitStack() as stack:
            for _ in self._lanes:
                lane = await stack.enter_async_context(self._lend())
                await lane.aclose()

    async def _read_shared(self, chunks: deque[Chunk], buffer: memoryview) -> None:
        async with self._lend() as lane:
            await lane.read(chunks, buffer)

    @contextlib.asynccontextmanager
    async def _lend(self) -> AsyncIterator["AiofilesLane"]:
        async with self._free:
            lane = self._idle.pop()
            try:
                yield lane
            finally:
                self._idle.append(lane)


class AiofilesLane(Lane):
    """Reads with `readinto` of asynchronous files, whose executor is the lane's thread."""

    def __init__(self, name: str, disk: Disk) -> None:
        super().__init__(disk)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._handles: dict[Path, AsyncFileIO] = {}

    async def read(self, chunks: deque[Chunk], buffer: memoryview) -> None:
        """Take chunks, which lanes share, and read them until none is left; after an error none is left for others."""
        try:
            while chunks:
                await self._read_chunk(chunks.popleft(), buffer, chunks)
        finally:
            chunks.clear()

    async def aclose(self) -> None:
        """Close the files and end the thread."""
        if self._descriptors:
            await self._finish(asyncio.get_running_loop().run_in_executor(self._thread, self.close), deque())
        self._thread.shutdown()

    async def _read_chunk(self, chunk: Chunk, buffer: memoryview, chunks: deque[Chunk]) -> None:
        position, end = chunk.start, self._end(chunk)
        rest = buffer[chunk.slot_offset :][: chunk.length]
        while position < end:
            try:
                handle = await self._handle(chunk.file, chunks)
                os.lseek(handle.fileno(), position, os.SEEK_SET)
                count = await self._finish(handle.readinto(rest[position - chunk.start :]), chunks) or 0
                if chunk.file not in self._direct_files:
                    loop = asyncio.get_running_loop()
                    drop = loop.run_in_executor(self._thread, self._drop_cached, chunk.file, position, count)
                    await self._finish(drop, chunks)
                position += self._took(chunk, position, count)
            except OSError as error:
                self._failed(chunk, position, error)
        self._check_unchanged(chunk.file, end)

    async def _handle(self, file: Path, chunks: deque[Chunk]) -> AsyncFileIO:
        if file not in self._handles:
            opened = asyncio.get_running_loop().run_in_executor(self._thread, self._descriptor, file)
            raw = FileIO(await self._finish(opened, chunks), closefd=False)  # the lane closes it
            self._handles[file] = wrap(raw, executor=self._thread)
        return self._handles[file]

    async def _finish(self, work: Awaitable[Result], chunks: deque[Chunk]) -> Result:
        """Wait for work of the thread. When cancelled, begin no further chunk, and let the thread come to its end."""
        try:
            return await work
        except asyncio.CancelledError:
            chunks.clear()
            idle = asyncio.get_running_loop().run_in_executor(self._thread, _nothing)
            while not idle.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([idle])
            raise


def _nothing() -> None:
    pass
