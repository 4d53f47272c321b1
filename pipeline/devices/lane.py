"""A lane: one thread that runs pieces of work strictly in order."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from actors.core.ports import Event


class LaneEvent:
    """The event of one piece of work on a lane. Threads wait with `wait_in_thread`, coroutines with `wait`."""

    def __init__(self) -> None:
        self.span: tuple[float, float] | None = None
        self._future: Future[None]

    @property
    def error(self) -> BaseException | None:
        """Why the work failed; None while it runs and when it succeeded."""
        return self._future.exception() if self._future.done() else None

    def done(self) -> bool:
        """Whether the work has ended."""
        return self._future.done()

    async def wait(self) -> None:
        """Wait on the event loop; raises the work's error. A cancelled wait leaves the work alone."""
        if not self._future.done():
            await asyncio.shield(asyncio.wrap_future(self._future))
        self._future.result()

    def wait_in_thread(self) -> None:
        """Wait on another lane's thread; raises the work's error."""
        self._future.result()

    def follow(self, future: "Future[None]") -> None:
        """Take the future of the work that this event stands for."""
        self._future = future


class Lane:
    """One thread, first in first out."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"penstock-{name}")

    def submit(self, work: Callable[[], object], after: Sequence[Event]) -> LaneEvent:
        """Run `work` once every event in `after` is done; if one of them failed, fail with its error instead."""
        event = LaneEvent()
        event.follow(self._executor.submit(_run, work, after, event))
        return event

    def close(self) -> None:
        """Let the thread end once it has run what was submitted; waits for it."""
        self._executor.shutdown(wait=True)


def _run(work: Callable[[], object], after: Sequence[Event], event: LaneEvent) -> None:
    for earlier in after:
        if isinstance(earlier, LaneEvent):
            earlier.wait_in_thread()
        elif not earlier.done():
            raise TypeError(f"a lane can wait only for device events and for what is done, not for {earlier!r}")
        elif earlier.error is not None:
            raise earlier.error
    started = time.perf_counter()
    try:
        work()
    finally:
        event.span = (started, time.perf_counter())
