"""The way "aiofiles": the event loop asks the thread for every single read."""

import asyncio
import os
from collections import deque
from io import FileIO
from pathlib import Path

from aiofiles.threadpool import wrap
from aiofiles.threadpool.binary import AsyncFileIO

from pipeline.weights.lane import Chunk, Disk, Lane


class AiofilesLane(Lane):
    """Reads with `readinto` of asynchronous files, whose executor is the lane's thread."""

    def __init__(self, name: str, disk: Disk) -> None:
        super().__init__(name, disk)
        self._handles: dict[Path, AsyncFileIO] = {}

    async def read(self, chunks: deque[Chunk], buffer: memoryview) -> None:
        """As `Lane.read`."""
        try:
            while chunks:
                await self._read_chunk(chunks.popleft(), buffer, chunks)
        finally:
            chunks.clear()

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
