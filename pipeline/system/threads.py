"""The event loop and threads talk to each other here. A thread cannot be stopped."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from actors.core.errors import said

GIVE_WAY_SECONDS = 0.0002
P = ParamSpec("P")
T = TypeVar("T")


class Threads(ThreadPoolExecutor):
    """A pool whose threads all begin with the first piece of work.

    A plain pool begins them one by one, and where one cannot begin it raises but keeps the work in its queue: it would
    be done later, when no caller waits for it and its memory may be another's. `first` is called in each thread. What
    work raises is made `portable`: an event loop takes no StopIteration, and its caller would wait for ever.
    """

    def __init__(self, count: int, name: str, first: Callable[[], object] | None = None) -> None:
        super().__init__(count, name, first)
        self._count = count
        self._lock = threading.Lock()
        self._begun = False

    def submit(self, work: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> "Future[T]":
        """As ThreadPoolExecutor. Raises RuntimeError, with nothing submitted, where the threads cannot begin."""
        with self._lock:
            if not self._begun:
                self._begin()
                self._begun = True
        return super().submit(_run, work, *arguments, **named)

    def _begin(self) -> None:
        """Each waits for all others, so that none is idle and does a piece of work that is to begin another one."""
        together = threading.Barrier(self._count)
        try:
            for _ in range(self._count):
                super().submit(together.wait)
        except RuntimeError:
            together.abort()
            raise


def _run(work: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> T:
    try:
        return work(*arguments, **named)
    except BaseException as error:
        raise portable(error)  # noqa: B904 - the same error, but for those that cannot travel, which are the cause


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slices(length: int, size: int) -> Iterator[int]:
    """Where each slice of a long piece of work in Python begins, on a thread beside the event loop.

    Between two slices others get the interpreter lock; else they get it every 5 ms (`sys.getswitchinterval`), and a
    pass, which takes it often, would last ten times as long.
    """
    for begin in range(0, length, size):
        if begin:
            give_way()
        yield begin


def give_way() -> None:
    """Let others have the interpreter lock, as between two slices."""
    time.sleep(GIVE_WAY_SECONDS)


async def outlast(running: Sequence[asyncio.Future[Any]]) -> None:
    """Wait for all of them, also when cancelled: what they use is free only then (rule 6). Raises the first error."""
    cancelled = False
    while not all(one.done() for one in running):
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError:
            cancelled = True
    errors = [error for one in running if (error := one.exception()) is not None]
    if cancelled:
        raise asyncio.CancelledError
    if errors:
        raise errors[0]


_closings: set[asyncio.Task[None]] = set()
"""Tasks that close something though their caller has been cancelled; the loop alone would not keep them."""


async def see_out(closing: Coroutine[Any, Any, None]) -> None:
    """Wait for `closing`, which goes on though the wait is cancelled."""
    task = asyncio.create_task(closing)
    _closings.add(task)
    task.add_done_callback(_closings.discard)
    await asyncio.shield(task)


def portable(error: BaseException) -> Exception:
    """The error itself; or a RuntimeError with it as cause, where the event loop would take it for something else."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration | CancelledError):
        return error
    carried = RuntimeError(said(error))
    carried.__cause__ = error
    return carried


def tell(loop: asyncio.AbstractEventLoop, *events: asyncio.Event) -> None:
    """Set events of a loop from a thread, unless the loop has closed and no task waits any more."""

    def set_all() -> None:
        for event in events:
            event.set()

    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(set_all)
