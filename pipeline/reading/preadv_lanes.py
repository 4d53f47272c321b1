"""The way "preadv": threads share the chunks of a call, and the one that ends the last of them wakes the event loop."""

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue

from actors.core.operation import foretell
from pipeline.groups.layout import Window
from pipeline.reading.reading_lane import (
    Disk,
    Landed,
    MostBytes,
    ReadingLane,
    ReadingLanes,
    unheeded,
)
from pipeline.system.threads import outlast, tell


class PreadvLanes(ReadingLanes["PreadvLane"]):
    """Reads with positioned reads, which need neither a seek nor the event loop: it wakes up once for each call."""

    def __init__(self, name: str, count: int, disk: Disk) -> None:
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        super().__init__([PreadvLane(disk) for _ in range(count)])

    async def read(
        self, chunks: Sequence[Window], buffer: memoryview, landed: Landed = unheeded, most: MostBytes | None = None
    ) -> None:
        """As `ReadingLanes.read`."""
        if not chunks:
            return
        self._start()
        call = _Call(chunks, buffer, landed, most)
        for _ in range(min(len(chunks), len(self._lanes) if most is None else 1)):
            self._calls.put(call)
        try:
            await call.failed.wait()
            if call.error is not None:
                foretell(call.error)
            await call.ended.wait()
        except asyncio.CancelledError:
            call.stop()
            await outlast([asyncio.ensure_future(call.ended.wait())])
            raise
        if call.error is not None:
            raise call.error

    async def aclose(self) -> None:
        """As `ReadingLanes.aclose`."""
        for _ in self._threads:
            self._calls.put(None)
        await asyncio.to_thread(self._join)

    def _start(self) -> None:
        """With the first read, so that a source that never reads has no threads to end."""
        for index in range(len(self._threads), len(self._lanes)):
            name = f"{self._name}-{index}"
            thread = threading.Thread(target=self._serve, args=[self._lanes[index]], name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _join(self) -> None:
        while self._threads:
            self._threads.pop().join()

    def _serve(self, lane: "PreadvLane") -> None:
        """The work of a thread."""
        while (call := self._calls.get()) is not None:
            call.serve(lane)
            del call  # it refers to the buffer


class PreadvLane(ReadingLane):
    """The work of one thread."""

    def read_chunk(self, chunk: Window, buffer: memoryview, most: MostBytes | None = None) -> bool:
        """Read a chunk, as far as its file goes, and say whether it is whole. Raises as `ReadingLanes.read`."""
        position, end = chunk.start, self._end(chunk)
        while position < end:
            if (step := None if most is None else most()) == 0:
                return False
            position += self._read(chunk, position, buffer, step)
        self._disk.check_unchanged(chunk.file, end)
        return True


class _Call:
    """Chunks that lanes share. It has `ended` when none is left, and nothing writes into the buffer any more.

    `failed` is set before that if there is an error: another thread may hang.
    """

    def __init__(self, chunks: Sequence[Window], buffer: memoryview, landed: Landed, most: MostBytes | None) -> None:
        self.failed = asyncio.Event()
        self.ended = asyncio.Event()
        self.error: BaseException | None = None
        self._buffer = buffer
        self._landed = landed
        self._most = most
        self._waiting = deque(chunks)
        self._left = len(chunks)
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()

    def serve(self, lane: PreadvLane) -> None:
        """In a lane's thread: read chunks while one waits."""
        while (chunk := self._take()) is not None:
            try:
                if lane.read_chunk(chunk, self._buffer, self._most):
                    self._landed(chunk)
                else:
                    self.stop()
            except BaseException as error:
                self.stop(error)
            self._leave(1)

    def stop(self, error: BaseException | None = None) -> None:
        """Begin no further chunk, because of this error or because they are not wanted any more."""
        with self._lock:
            dropped = len(self._waiting)
            self._waiting.clear()
            self.error = self.error or error
        if error is not None:
            tell(self._loop, self.failed)
        self._leave(dropped)

    def _take(self) -> Window | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _leave(self, count: int) -> None:
        """Count chunks that are read or dropped; the last one of the call wakes the loop."""
        with self._lock:
            self._left -= count
            last = not self._left
        if last:
            tell(self._loop, self.failed, self.ended)
