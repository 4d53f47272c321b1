"""An asyncio loop on virtual time: when all tasks wait, the clock jumps to the next timer."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

from pipeline.errors import PenstockError
from pipeline.tools.simulation.waits_for import waits_for

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Deadlock(PenstockError):
    """All tasks wait and no timer is set: nothing can ever happen again. The message says which waits for which."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The standard loop with a clock that jumps instead of sleeping. Work on threads takes no virtual time."""

    def __init__(self) -> None:
        self.on_threads = 0
        self._clock = _JumpingSelector(self)
        super().__init__(self._clock)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._clock.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Arguments]], Result], *args: *Arguments
    ) -> "asyncio.Future[Result]":
        """Let the clock stand still until the thread is through."""
        future = super().run_in_executor(executor, func, *args)
        self.on_threads += 1
        future.add_done_callback(self._end_thread)
        return future

    async def shutdown_default_executor(self, *timeout: Any) -> None:
        """Ends on a thread too. The timeout is there from Python 3.12 on."""
        self.on_threads += 1
        await super().shutdown_default_executor(*timeout)
        self._end_thread()

    def _end_thread(self, future: object = None) -> None:
        self.on_threads -= 1


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop, self.now = loop, 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._loop.on_threads and timeout != 0:
            return super().select(None)
        if timeout is None:
            raise Deadlock(f"all tasks wait, forever: {waits_for(asyncio.all_tasks(self._loop))}")
        if timeout > 0:
            self.now += timeout
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        return ready


def run_virtual(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on virtual time, to its end. Raises Deadlock when it can never end."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
