"""The tasks of one run of a line: the loops of its actors, and what they start beside them.

The line runs until a task fails or ends before its turn, or until all have ended. Then the remaining tasks are stopped.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from actors.core.errors import ActorFailed, LineError

STOP_SECONDS = 5.0
"""How long a line that stops waits for its tasks. A thread may hang in a read, and a stage may swallow its end."""

Over: TypeAlias = "asyncio.Future[BaseException | None]"
"""Done when a run is over, with the failure that came first; cancelled when the run has been stopped."""

Named: TypeAlias = Callable[[BaseException], ActorFailed]
"""Gives an error the name of the actor that it comes from."""

Then: TypeAlias = Callable[[BaseException | None], BaseException | None]
"""Takes the error of a task that has ended, or None, and returns the error to report: to return early is one, too."""


class Crew:
    """The tasks of one run of one line, which all have the run as their parent (rule 7)."""

    def __init__(self, over: Over) -> None:
        self._over = over
        self.tasks: dict[asyncio.Task[None], tuple[Named, Then]] = {}

    def begin(
        self, work: Coroutine[Any, Any, None], named: Named, then: Then, name: str | None = None
    ) -> "asyncio.Task[None]":
        """Run `work` as a task, at whose end `then` is called first. Where the run is over, the task is cancelled."""
        task = self._over.get_loop().create_task(work, name=name)
        self.tasks[task] = named, then
        task.add_done_callback(self._left)
        if self._over.done():
            task.cancel()
        return task

    def end(self, failure: BaseException | None) -> None:
        """End the run, with this failure or with None. The first call counts: later failures are consequences of it."""
        if not self._over.done():
            self._over.set_result(failure)

    def _left(self, task: "asyncio.Task[None]") -> None:
        named, then = self.tasks.pop(task)
        error = then(self._end_of(task, named))
        if error is not None or not self.tasks:
            self.end(error)

    def _end_of(self, task: "asyncio.Task[None]", named: Named) -> BaseException | None:
        """Why a task has not ended well: what it raised, with the name of the actor that it comes from."""
        if not task.cancelled():
            error = task.exception()
            return None if error is None else named(error)
        if not task.cancelling():
            return named(RuntimeError("ended itself by raising CancelledError"))
        if self._over.done():
            return LineError("the line was stopped before the work had ended")
        return named(LineError("was cancelled by itself, while the line goes on"))


async def stop(crews: Sequence[Crew]) -> None:
    """Stop the tasks that are left, and wait for them, also when cancelled; but not for ever."""
    loop, cancelled = asyncio.get_running_loop(), False
    until = loop.time() + STOP_SECONDS
    for crew in crews:
        for task in crew.tasks:
            task.cancel()
    while (left := [task for crew in crews for task in crew.tasks]) and (seconds := until - loop.time()) > 0:
        try:
            await asyncio.wait(left, timeout=seconds)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
