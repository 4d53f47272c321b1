"""The event loop of a program of our own: a command, or an arm of a comparison."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

Result = TypeVar("Result")
LOOP_DESCRIPTORS = 12
TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def signal_ends(number: int = signal.SIGTERM) -> Iterator[None]:
    """Let a signal raise SystemExit within, so that what was begun is undone; where it is ignored it stays so."""
    before = signal.getsignal(number)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(number, _end)
    try:
        yield
    finally:
        signal.signal(number, before)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its result, on uvloop where it is installed (rule 10).

    SIGTERM ends it as Ctrl-C does, so that it tells what was done until then; SystemExit has the status of that.
    Raises OSError where there are too few descriptors.
    """
    with contextlib.closing(work):
        # A loop of uvloop that finds too few descriptors when it begins hides that, and cannot be closed.
        with contextlib.ExitStack() as opened:
            for _ in range(LOOP_DESCRIPTORS):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        return _run(work)


def loop_factory() -> "Callable[[], asyncio.AbstractEventLoop] | None":
    """What makes loops of uvloop where that is installed, and None where it is not (rule 10)."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    import asyncio

    async def until_terminated() -> Result:
        if (task := asyncio.current_task()) is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(until_terminated())
    except asyncio.CancelledError:
        raise SystemExit(TERMINATED) from None
