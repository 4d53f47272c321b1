"""Work that a line runs beside an actor's loop, seen as an event."""

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any

from actors.core.crew import Crew, Named
from actors.core.event import Clock, Event


class Operation:
    """The event of a coroutine that runs as a child task of the line.

    Its error, as `named` names it, ends the run of the line and is raised at every waiter.
    A coroutine that only watches over an operation elsewhere names that one's event: then its span is the one to tell.
    """

    def __init__(
        self, crew: Crew, clock: Clock, work: Coroutine[Any, Any, None], named: Named, watched: Event | None = None
    ) -> None:
        self._crew, self._clock, self._work, self._named, self._watched = crew, clock, work, named, watched
        self._ended = asyncio.Event()
        self._span: tuple[float, float] | None = None
        self.error: BaseException | None = None
        crew.begin(self._run(), named, self._end)

    @property
    def span(self) -> tuple[float, float] | None:
        """When the coroutine, or the operation that it watched over, ran; None while it runs."""
        if self._watched is not None and self._watched.done():
            return self._watched.span
        return self._span

    def done(self) -> bool:
        """Whether the coroutine has ended."""
        return self._ended.is_set()

    async def wait(self) -> None:
        """Wait for the end; raises the coroutine's error."""
        await self._ended.wait()
        if self.error is not None:
            raise self.error

    async def _run(self) -> None:
        started = self._clock()
        _present.set(self)
        try:
            await self._work
        finally:
            self._span = (started, self._clock())
        self._ended.set()  # a turn of the loop before the task has left; a failure is first named, by `_end`

    def _end(self, error: BaseException | None) -> BaseException | None:
        self._work.close()  # a task that is cancelled before its first step never enters its coroutine
        self.error = error
        self._ended.set()
        return error


_present: ContextVar[Operation | None] = ContextVar("the operation that runs in the present task", default=None)


def foretell(error: BaseException) -> None:
    """Say that the present work will fail, though it cannot end yet: a thread may still use its memory (rule 6)."""
    if (operation := _present.get()) is not None:
        operation._crew.end(operation._named(error))


def pending_cancellations() -> int:
    """How often the current task has been asked to stop."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def cancelled_from_outside(since: int = 0) -> bool:
    """Whether the current task was asked to stop; a CancelledError without that is an error like any other."""
    return pending_cancellations() > since
