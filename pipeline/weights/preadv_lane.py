"""The way "preadv": one hop to the thread for all chunks of a group that the lane gets."""

import asyncio
import os
from collections import deque

from pipeline.weights.lane import Chunk, Lane


class PreadvLane(Lane):
    """Reads with positioned reads from the thread itself, which need neither a seek nor the event loop."""

    async def read(self, chunks: deque[Chunk], buffer: memoryview) -> None:
        """As `Lane.read`."""
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._read, chunks, buffer)
        await self._finish(work, chunks)

    def _read(self, chunks: deque[Chunk], buffer: memoryview) -> None:
        try:
            while (chunk := _taken(chunks)) is not None:
                self._read_chunk(chunk, buffer)
        finally:
            chunks.clear()

    def _read_chunk(self, chunk: Chunk, buffer: memoryview) -> None:
        position, end = chunk.start, self._end(chunk)
        rest = buffer[chunk.slot_offset :][: chunk.length]
        while position < end:
            try:
                descriptor = self._descriptor(chunk.file)
                count = os.preadv(descriptor, [rest[position - chunk.start :]], position)
                if chunk.file not in self._direct_files:
                    self._drop_cached(chunk.file, position, count)
                position += self._took(chunk, position, count)
            except OSError as error:
                self._failed(chunk, position, error)
        self._check_unchanged(chunk.file, end)


def _taken(chunks: deque[Chunk]) -> Chunk | None:
    """Looking before taking would not do: other lanes take as well."""
    try:
        return chunks.popleft()
    except IndexError:
        return None
