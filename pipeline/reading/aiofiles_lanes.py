"""The way "aiofiles": the event loop asks a thread for every single read."""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Sequence

from aiofiles.os import wrap

from actors.core.operation import foretell
from actors.core.ports import Perhaps
from pipeline.groups.layout import Window
from pipeline.reading.reading_lane import (
    Disk,
    Landed,
    ReadingLane,
    ReadingLanes,
    step_bytes,
    unheeded,
)
from pipeline.system.threads import Threads, outlast


class AiofilesLanes(ReadingLanes["AiofilesLane"]):
    """Lends its lanes to calls, each of which shares its chunks out among those that it gets."""

    def __init__(self, name: str, count: int, disk: Disk) -> None:
        super().__init__([AiofilesLane(f"{name}-{index}", disk) for index in range(count)])
        self._idle = list(self._lanes)
        self._free = asyncio.Semaphore(count)
        self._calls = 0
        self._changed = threading.Condition()
        self._rests = asyncio.Event()

    async def read(
        self, chunks: Sequence[Window], buffer: memoryview, landed: Landed = unheeded, guess: Perhaps | None = None
    ) -> None:
        """As `ReadingLanes.read`. A guess begins when nothing is read."""
        if guess is not None:
            guess.decided = self._rests.set
            while self._calls and guess.wanted is None:
                self._rests.clear()
                await self._rests.wait()
            if not guess.goes_on():
                return
            guess.begun = True
        shared = deque(chunks)
        lanes = min(len(chunks), len(self._lanes) if guess is None else 1)
        workers = [self._read_shared(shared, buffer, landed, guess) for _ in range(lanes)]
        self._count_calls(1)
        try:
            # With return_exceptions a gather ends only after its last worker, even when it is cancelled.
            for outcome in await asyncio.gather(*workers, return_exceptions=True):
                if outcome is not None:
                    raise outcome
        finally:
            self._count_calls(-1)
            self._rests.set()

    async def aclose(self) -> None:
        """As `ReadingLanes.aclose`."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        """On a thread, since the calls may run on another event loop than the one that closes."""
        with self._changed:
            while self._calls:
                self._changed.wait()
        for lane in self._lanes:
            lane.close()

    def _count_calls(self, more: int) -> None:
        with self._changed:
            self._calls += more
            self._changed.notify_all()

    async def _read_shared(
        self, chunks: deque[Window], buffer: memoryview, landed: Landed, guess: Perhaps | None
    ) -> None:
        async with self._free:
            lane = self._idle.pop()
            try:
                await lane.read(chunks, buffer, landed, guess)
            finally:
                self._idle.append(lane)


class AiofilesLane(ReadingLane):
    """Reads as aiofiles does: a function of the operating system, called on the lane's thread and awaited."""

    def __init__(self, name: str, disk: Disk) -> None:
        super().__init__(disk)
        self._thread = Threads(1, name)
        self._read_on_thread = wrap(self._read)

    async def read(self, chunks: deque[Window], buffer: memoryview, landed: Landed, guess: Perhaps | None) -> None:
        """Take chunks, which lanes share, and read them until none is left; after an error none is left for others."""
        try:
            while chunks:
                chunk = chunks.popleft()
                if not await self._read_chunk(chunk, buffer, chunks, guess):
                    return
                landed(chunk)
        except Exception as error:
            if guess is None:  # the error of a guess counts only if that turns out right
                foretell(error)
            raise
        finally:
            chunks.clear()

    def close(self) -> None:
        """End the thread; no read may be in flight."""
        self._thread.shutdown()

    async def _read_chunk(
        self, chunk: Window, buffer: memoryview, chunks: deque[Window], guess: Perhaps | None
    ) -> bool:
        """Say whether the chunk is whole."""
        position, end = chunk.start, self._end(chunk)
        while position < end:
            if (step := step_bytes(guess)) == 0:
                return False
            reading = self._read_on_thread(chunk, position, buffer, step, executor=self._thread)
            position += await self._finish(reading, chunks)
        self._disk.check_unchanged(chunk.file, end)
        return True

    async def _finish(self, reading: Awaitable[int], chunks: deque[Window]) -> int:
        """Wait for a read. When cancelled, begin no further chunk, and let the thread come to its end."""
        try:
            return await reading
        except asyncio.CancelledError:
            chunks.clear()
            await outlast([asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)])
            raise
