"""Texts are tokenised away from the event loop, so that a long prompt delays no other request's next token."""

import asyncio
import contextlib
import copy
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.system.threads import Threads, portable

LONG_TEXT = 1 << 16
"""Characters of a text, or ids of a prompt, from which on it goes to the thread for long ones."""
Result = TypeVar("Result")


class Tokenizing:
    """Two threads, one for long texts and one for the others, each of which serves calls in the order of their coming.

    A call that is cancelled lets go of its text at once, or, where a thread works on it, when that has ended: a thread
    cannot be stopped.
    """

    def __init__(self) -> None:
        self._queues = _Queue("tokenizing"), _Queue("tokenizing-long")
        self._closed: Callable[[], Exception] | None = None

    async def run(self, length: int, work: Callable[[], Result]) -> Result:
        """Return or raise what `work` does on the thread for texts of this length; raises what `close` was given."""
        if self._closed is not None:
            raise self._closed()
        return await self._queues[length >= LONG_TEXT].run(length, work)

    def close(self, error: Callable[[], Exception]) -> None:
        """End every call that waits with an error of its own, and let the threads end.

        One that still works is not waited for: no caller wants what it works on any more.
        """
        self._closed = error
        for queue in self._queues:
            queue.close(error)


class _Queue:
    """The work of one thread. It gets the next when it has ended the last, and so never holds what was cancelled.

    Short texts go there together, as many as make a long one, and come back together: calls that were made at once
    share their first pass.
    """

    def __init__(self, name: str) -> None:
        self._executor = Threads(1, f"penstock-{name}")
        self._waiting: dict[asyncio.Future[Any], tuple[int, Callable[[], object]]] = {}
        self._busy = False

    async def run(self, length: int, work: Callable[[], Result]) -> Result:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Result] = loop.create_future()
        self._waiting[outcome] = length, work
        if not self._busy:
            self._busy = True
            loop.call_soon(self._begin, loop)  # when all calls of this turn of the loop have come
        try:
            return await outcome
        finally:
            self._waiting.pop(outcome, None)

    def close(self, error: Callable[[], Exception]) -> None:
        for outcome in self._waiting:
            _fail(outcome, error())
        self._executor.shutdown(wait=not self._busy)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        together: dict[asyncio.Future[Any], Callable[[], object]] = {}
        room = LONG_TEXT
        for outcome, (length, work) in self._waiting.items():
            if room > 0 and not outcome.done():
                together[outcome] = work
                room -= length
        self._busy = bool(together)
        try:
            if together:
                self._executor.submit(self._run, loop, together)
        except Exception as error:  # the thread cannot begin; the next call tries again
            self._busy = False
            for outcome in self._waiting:
                _fail(outcome, copy.copy(error))

    def _run(
        self, loop: asyncio.AbstractEventLoop, together: "dict[asyncio.Future[Any], Callable[[], object]]"
    ) -> None:
        ended: list[tuple[asyncio.Future[Any], object, Exception | None]] = []
        while together:
            outcome = next(iter(together))
            work = together.pop(outcome)
            try:
                ended.append((outcome, None if outcome.done() else work(), None))
            except BaseException as error:
                ended.append((outcome, None, portable(error)))
        with contextlib.suppress(RuntimeError):  # the loop has closed, and no caller waits any more
            loop.call_soon_threadsafe(self._ended, loop, ended)

    def _ended(
        self, loop: asyncio.AbstractEventLoop, ended: "list[tuple[asyncio.Future[Any], object, Exception | None]]"
    ) -> None:
        for outcome, result, error in ended:
            if error is not None:
                _fail(outcome, error)
            elif not outcome.done():
                outcome.set_result(result)
        self._begin(loop)


def _fail(outcome: "asyncio.Future[Any]", error: Exception) -> None:
    """Tell the caller that waits; where the event loop has closed, none does any more."""
    with contextlib.suppress(RuntimeError):
        if not outcome.done():
            outcome.set_exception(error)
