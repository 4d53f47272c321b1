"""Work that a line runs beside an actor's loop, seen as an event."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from actors.core.errors import LineError
from actors.core.ports import Clock, Event


class Operation:
    """The event of a coroutine that runs as a child task of the line.

    A coroutine that only watches over an operation elsewhere names that one's event: then its span is the one to tell.
    """

    def __init__(self, clock: Clock, watched: Event | None = None) -> None:
        self._clock = clock
        self._watched = watched
        self._ended = asyncio.Event()
        self._span: tuple[float, float] | None = None
        self.error: BaseException | None = None

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

    def begin(
        self, tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, None], failure: Callable[[Exception], Exception]
    ) -> "asyncio.Task[None]":
        """Run `work`; its error, turned by `failure`, is raised in the task group and at every waiter (rule 7)."""

        def end(task: asyncio.Task[None]) -> None:
            # A task that is cancelled before its first step never enters its coroutine, but has ended all the same.
            work.close()
            if task.cancelled():
                self.error = LineError("the line was stopped before the work had ended")
            self._ended.set()

        task = tasks.create_task(self._run(work, failure))
        task.add_done_callback(end)
        return task

    async def _run(self, work: Coroutine[Any, Any, None], failure: Callable[[Exception], Exception]) -> None:
        started = self._clock()
        try:
            await work
        except asyncio.CancelledError:
            if cancelled_from_outside():
                raise
            self.error = failure(RuntimeError("the work ended itself by raising CancelledError"))
            raise self.error from self.error.__cause__
        except Exception as error:
            self.error = failure(error)
            if self.error is error:
                raise
            raise self.error from error
        finally:
            self._span = (started, self._clock())
            if not cancelled_from_outside():  # else `end` tells
                self._ended.set()


def pending_cancellations() -> int:
    """How often somebody has asked the current task to stop."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def cancelled_from_outside(since: int = 0) -> bool:
    """Whether somebody asked the current task to stop; a CancelledError without that is an error like any other."""
    return pending_cancellations() > since
