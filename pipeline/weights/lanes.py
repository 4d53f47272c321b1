"""The lanes of a source, lent to whoever has something to read."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from pipeline.weights.aiofiles_lane import AiofilesLane
from pipeline.weights.lane import Disk, Lane
from pipeline.weights.preadv_lane import PreadvLane

LANES: dict[str, type[Lane]] = {"preadv": PreadvLane, "aiofiles": AiofilesLane}


class Lanes:
    """`count` lanes of one way, lent first come first served."""

    def __init__(self, name: str, way: str, count: int, disk: Disk) -> None:
        self.count = count
        self._lanes = [LANES[way](f"{name}-{index}", disk) for index in range(count)]
        self._idle = list(self._lanes)
        self._free = asyncio.Semaphore(count)

    @property
    def bytes_read(self) -> int:
        """Bytes that came from files."""
        return sum(lane.bytes_read for lane in self._lanes)

    @property
    def reads(self) -> int:
        """Reads that returned bytes."""
        return sum(lane.reads for lane in self._lanes)

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
