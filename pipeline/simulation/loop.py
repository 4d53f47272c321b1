"""An asyncio loop on virtual time: when everybody waits, the clock jumps to the next timer."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from pipeline.errors import PenstockError

Result = TypeVar("Result")


class Deadlock(PenstockError):
    """Everybody waits and no timer is set: nothing can ever happen again. The message says who waits where."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The standard loop with a clock that jumps instead of sleeping."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Let virtual time pass."""
        self._now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            waiting = "; ".join(sorted(_where(task) for task in asyncio.all_tasks(self._loop)))
            raise Deadlock(f"everybody waits, forever: {waiting}")
        if timeout > 0:
            self._loop.jump(timeout)
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        return ready


def _where(task: "asyncio.Task[Any]") -> str:
    frames = [frame.f_code.co_qualname for frame in task.get_stack()]
    coroutine = task.get_coro()
    while getattr(coroutine, "cr_await", None) is not None:
        coroutine = coroutine.cr_await  # type: ignore[union-attr]
        if hasattr(coroutine, "cr_code"):
            frames.append(coroutine.cr_code.co_qualname)
    return f"{task.get_name()} in {' > '.join(frames)}"


def run_virtual(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on virtual time, to its end. Raises Deadlock when it can never end."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
