"""The way "preadv": threads share the chunks of a call, and the one that ends the last of them wakes the event loop."""

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue

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
from pipeline.system.threads import outlast, tell

HAND_OVER_SECONDS, LOOK_SECONDS = 0.0005, 0.00002
"""How long `hand_over` waits for threads to take up their work, and how often it looks: one wakes up in 0.06 ms."""


class PreadvLanes(ReadingLanes["PreadvLane"]):
    """Reads with positioned reads, which need neither a seek nor the event loop: it wakes up once for each call.

    A thread looks for a call each time it is asked to: first for one that is wanted, in order of arrival, then for a
    guess. So a guess begins right behind the last wanted read, without waiting for the event loop.
    """

    def __init__(self, name: str, count: int, disk: Disk) -> None:
        self._name = name
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._lock = threading.Lock()
        self._wanted: deque[_Call] = deque()
        self._guessed: deque[_Call] = deque()
        self._guess: _Call | None = None
        self._threads: list[threading.Thread] = []
        super().__init__([PreadvLane(disk) for _ in range(count)])

    async def read(
        self, chunks: Sequence[Window], buffer: memoryview, landed: Landed = unheeded, guess: Perhaps | None = None
    ) -> None:
        """As `ReadingLanes.read`."""
        if not chunks:
            return
        self._start()
        call = _Call(chunks, buffer, landed, guess)
        if guess is None:
            self._ask(self._wanted, call, min(len(chunks), len(self._lanes)))
        else:
            guess.decided = functools.partial(self._decided, call, guess)
            self._ask(self._guessed, call)
            if guess.wanted is not None:
                guess.decided()
        try:
            await call.failed.wait()
            if call.error is not None and guess is None:  # that of a guess counts only if it turns out right
                foretell(call.error)
            await call.ended.wait()
        except asyncio.CancelledError:
            call.stop()
            await outlast([asyncio.ensure_future(call.ended.wait())])
            raise
        if call.error is not None:
            raise call.error

    def hand_over(self) -> None:
        """As `ReadingLanes.hand_over`."""
        give_up = time.perf_counter() + HAND_OVER_SECONDS
        while self._wanted and not all(lane.serves for lane in self._lanes) and time.perf_counter() < give_up:
            time.sleep(LOOK_SECONDS)

    async def aclose(self) -> None:
        """As `ReadingLanes.aclose`."""
        for _ in self._threads:
            self._asked.put(False)
        await asyncio.to_thread(self._join)

    def _ask(self, calls: "deque[_Call]", call: "_Call", times: int = 1) -> None:
        with self._lock:
            calls.extend([call] * times)
        for _ in range(times):
            self._asked.put(True)

    def _decided(self, call: "_Call", guess: Perhaps) -> None:
        """Queue a right guess with the wanted calls, if it waits, and end a wrong one."""
        with self._lock:
            if waits := call in self._guessed:
                self._guessed.remove(call)
        if not guess.goes_on():
            call.stop()
        elif waits:
            self._ask(self._wanted, call)
        self._leave(call)

    def _start(self) -> None:
        """Start the threads with the first read: a source that never reads has none to end."""
        for index in range(len(self._threads), len(self._lanes)):
            name = f"{self._name}-{index}"
            thread = threading.Thread(target=self._serve, args=[self._lanes[index]], name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _join(self) -> None:
        while self._threads:
            self._threads.pop().join()

    def _serve(self, lane: "PreadvLane") -> None:
        """What each thread runs."""
        while self._asked.get():
            if (call := self._next()) is not None:
                lane.serves = True
                call.serve(lane)
                lane.serves = False
                self._leave(call)
            del call  # it refers to the buffer

    def _next(self) -> "_Call | None":
        """The next wanted call, or else a guess, if no other guess is being read."""
        with self._lock:
            if self._wanted:
                return self._wanted.popleft()
            if self._guess is None and self._guessed:
                self._guess = self._guessed.popleft()
                return self._guess
            return None

    def _leave(self, call: "_Call") -> None:
        """Let a thread look for the next guess, behind a guess that was read or is wanted now."""
        with self._lock:
            if self._guess is not call:
                return
            self._guess = None
            more = bool(self._guessed)
        if more:
            self._asked.put(True)


class PreadvLane(ReadingLane):
    """The work of one thread; whether it `serves` a call."""

    serves = False

    def read_chunk(self, chunk: Window, buffer: memoryview, guess: Perhaps | None = None) -> bool:
        """Read a chunk, as far as its file goes, and say whether it is whole. Raises as `ReadingLanes.read`."""
        position, end = chunk.start, self._end(chunk)
        while position < end:
            if (step := step_bytes(guess)) == 0:
                return False
            if guess is not None:
                guess.begun = True
            position += self._read(chunk, position, buffer, step)
        self._disk.check_unchanged(chunk.file, end)
        return True


class _Call:
    """Chunks that lanes share. It has `ended` when none is left, and nothing writes into the buffer any more.

    `failed` is set before that if there is an error: another thread may hang.
    """

    def __init__(self, chunks: Sequence[Window], buffer: memoryview, landed: Landed, guess: Perhaps | None) -> None:
        self.failed = asyncio.Event()
        self.ended = asyncio.Event()
        self.error: BaseException | None = None
        self._buffer = buffer
        self._landed = landed
        self._guess = guess
        self._waiting = deque(chunks)
        self._left = len(chunks)
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()

    def serve(self, lane: PreadvLane) -> None:
        """In a lane's thread: read chunks while one waits."""
        while (chunk := self._take()) is not None:
            try:
                if lane.read_chunk(chunk, self._buffer, self._guess):
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
