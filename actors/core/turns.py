"""First come, first served waiting: the one way in which anything in a line waits for room, items or slots."""

import asyncio
from collections import deque
from collections.abc import Callable

from actors.core.event import Clock
from actors.core.operation import cancelled_from_outside


class _Waiter:
    __slots__ = ("ready", "woken")

    def __init__(self, ready: Callable[[], bool]) -> None:
        self.ready = ready
        self.woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Turns:
    """A row of waiters, each with its own condition; only the head of the row may go.

    A turn that is cancelled did not happen: the caller takes what it waited for after `take_turn` has returned, in
    code without an await, so a cancellation never falls between having and holding (rule 6).
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._row: deque[_Waiter] = deque()
        self._waited_seconds = 0.0
        self._waiting_since = 0.0

    @property
    def waited_seconds(self) -> float:
        """Seconds during which the row was not empty, up to now."""
        return self._waited_seconds + (self._clock() - self._waiting_since if self._row else 0.0)

    def can_go(self, ready: Callable[[], bool]) -> bool:
        """Whether a turn could be taken without waiting."""
        return not self._row and ready()

    async def take_turn(self, ready: Callable[[], bool]) -> None:
        """Return once all before have gone and `ready()` holds.

        Raises CancelledError in a task that has swallowed a cancellation: it would wait for ever, as nobody cancels it
        a second time.
        """
        if self.can_go(ready):
            return
        if cancelled_from_outside():
            raise asyncio.CancelledError
        waiter = _Waiter(ready)
        if not self._row:
            self._waiting_since = self._clock()
        self._row.append(waiter)
        try:
            await waiter.woken
            while not (self._row[0] is waiter and ready()):
                waiter.woken = asyncio.get_running_loop().create_future()
                await waiter.woken
        finally:
            self._row.remove(waiter)
            if not self._row:
                self._waited_seconds += self._clock() - self._waiting_since
            self.notify()

    def notify(self) -> None:
        """Let the head of the row look at its condition again."""
        if self._row and self._row[0].ready() and not self._row[0].woken.done():
            self._row[0].woken.set_result(None)
