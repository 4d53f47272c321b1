"""Keeps the lines of an open model running, tells the callers of a failure, and closes."""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, wait
from typing import Any, Protocol, TypeVar

from actors.core.crew import STOP_SECONDS, Over
from actors.core.errors import ActorFailed, LineError, PolicyFailed
from actors.core.line import Line
from pipeline.errors import ClosedError, ResourceError
from pipeline.system.limits import explained, limits_named
from pipeline.system.threads import portable

logger = logging.getLogger("penstock")
PATIENCE_SECONDS = 0.5
"""How long those that run wait for a line that has failed to stop, before they are told."""
CANCELLED = "its task was cancelled, as when the event loop shuts down"
LOOP_CHECK_SECONDS = 0.1
"""How often a call from elsewhere looks whether the model's own event loop still runs."""
Result = TypeVar("Result")


class Callers(Protocol):
    """The requests of a program, which the supervisor tells what becomes of the line."""

    async def wanted(self) -> None:
        """Wait until one of them wants something."""

    async def drained(self) -> None:
        """Wait until all have what they want."""

    def fail(self, error: BaseException) -> None:
        """Tell all of an error."""

    def fail_those_that_run(self, error: BaseException) -> None:
        """Tell those whose turn has come; those that wait keep their places."""

    def interrupt(self, error: BaseException) -> None:
        """Compute anew for those whose turn has come, once: the line has stopped after an error."""

    def stopped(self) -> None:
        """Take everything back: the line has stopped."""

    def refuse(self, error: ClosedError) -> None:
        """Tell all of an error, and refuse later requests."""


class Supervised(Protocol):
    """What the supervisor runs."""

    @property
    def lines(self) -> Sequence[Line]:
        """All lines."""

    @property
    def own_actors(self) -> Collection[str]:
        """The names of the user's own actors among those of the lines."""

    def running(self) -> contextlib.AbstractAsyncContextManager[Over]:
        """Run the lines, and give what tells the end."""

    async def aclose(self) -> None:
        """Give everything back; the lines must have stopped."""


class Supervisor:
    """Runs the lines in a task of its own. Weights never change, so recovery is to run them anew (rule 7).

    Whatever ends the task, all callers are told. Callers are told before anything waits for threads, which cannot be
    stopped; what threads use is given back when they have ended (rule 6), on a thread that no event loop can stop.
    """

    def __init__(self, runtime: Supervised, callers: Callers) -> None:
        self._runtime = runtime
        self._callers = callers
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._closes = False
        self._refusal: ClosedError | None = None
        self._given_back: Future[None] | None = None
        self._giving_back: threading.Thread | None = None
        self._task = asyncio.create_task(self._supervise(), name="penstock")
        self._task.add_done_callback(self._ended)

    def done(self) -> bool:
        """Whether the lines are not run any more."""
        return self._task.done()

    async def aclose(self, *, drain: bool = False) -> None:
        """End all requests with ClosedError, stop the lines and give everything back, from whatever event loop.

        Every call waits for the same closing, which goes on when a call is cancelled. With `drain` it begins when
        no request wants tokens any more. Raises ActorFailed when a task that was stopped has not ended.
        """
        if asyncio.get_running_loop() is self._loop:
            await self._close(drain)
            return
        if self._loop_runs():
            await self._elsewhere(asyncio.run_coroutine_threadsafe(self._close(drain), self._loop))
        if not self._loop_runs():
            self._closes = True
            with contextlib.suppress(RuntimeError):  # a loop that is closed wakes no task
                self._refuse(_closed())
                self._task.cancel()
            await self._give_back()

    def check_serves(self) -> None:
        """Raise ClosedError when requests are not served any more."""
        if self._refusal is not None:
            raise ClosedError(str(self._refusal)) from self._refusal.__cause__

    def call(self, work: Callable[[], Result]) -> Result:
        """Return what `work` does, called between two turns of the model's event loop, from whatever thread.

        What the loop changes at any time may be looked at only there, or anywhere once it runs no more.
        """
        with contextlib.suppress(RuntimeError):  # where none runs
            if asyncio.get_running_loop() is self._loop:
                return work()
        result: Future[Result] = Future()

        def answer() -> None:
            try:
                result.set_result(work())
            except Exception as error:
                result.set_exception(error)

        with contextlib.suppress(RuntimeError):  # where it is closed
            self._loop.call_soon_threadsafe(answer)
        while not result.done() and self._loop_runs():
            wait([result], timeout=LOOP_CHECK_SECONDS)
        return result.result() if result.done() else work()

    async def _supervise(self) -> None:
        while True:
            try:
                await self._run()
            except Exception as error:  # no request can be served before all tasks of the last run have ended
                failure = explained(error)
                logger.error("%s", failure)
                self._callers.fail(failure)
            await self._callers.wanted()

    async def _run(self) -> None:
        """Run the lines until one fails; when all have stopped, running requests are computed anew.

        Where a thread keeps the lines from stopping, they get the error instead; waiting ones keep their places.
        """
        async with self._runtime.running() as over:
            try:
                end = await over
            except asyncio.CancelledError:
                self._refuse(_no_more(CANCELLED))
                raise
            failure = explained(end or LineError("the line ended, though its plan has no end"))
            logger.error("%s", failure)
            if recurs := self._recurs(failure):
                self._callers.fail(failure)
            patience = self._loop.call_later(PATIENCE_SECONDS, self._callers.fail_those_that_run, failure)
        patience.cancel()
        if recurs:  # requests that came since then keep their places
            self._callers.stopped()
        else:
            self._callers.interrupt(failure)

    def _recurs(self, failure: BaseException) -> bool:
        """Whether a new run would fail alike: through a stage or policy of the user's, or the way the line is wired."""
        if isinstance(failure, ActorFailed):
            return failure.actor in self._runtime.own_actors or isinstance(failure.__cause__, PolicyFailed)
        return isinstance(failure, LineError)

    def _refuse(self, error: ClosedError) -> None:
        """End all requests, and serve none any more."""
        if self._refusal is None:
            self._refusal = error
            self._callers.refuse(error)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Tell all callers that the task has ended, for whatever reason, so that none waits for ever."""
        if not task.cancelled() and (error := task.exception()) is not None:
            closed = _no_more(repr(error))
            closed.__cause__ = error
            logger.error("%s", closed)
            self._refuse(closed)
        self._refuse(_no_more(CANCELLED))
        self._callers.stopped()
        if self._closes:
            with contextlib.suppress(ResourceError):  # the caller that closes is told
                self._begin_giving_back()

    async def _close(self, drain: bool) -> None:
        if drain:
            await self._callers.drained()
        self._closes = True
        self._refuse(_closed())
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._give_back()
        for line in self._runtime.lines:
            await line.at_end()  # a task whose read has just returned needs some turns of the loop to end

    async def _elsewhere(self, closing: "Future[None]") -> None:
        """Wait for the closing on the model's own loop, for as long as that one runs."""
        waiting: asyncio.Future[Any] = asyncio.wrap_future(closing)
        try:
            while self._loop_runs() and not waiting.done():
                await asyncio.wait([waiting], timeout=LOOP_CHECK_SECONDS)
        finally:
            waiting.cancel()
        if not waiting.cancelled():
            waiting.result()

    async def _give_back(self) -> None:
        waiting = asyncio.wrap_future(self._begin_giving_back())
        await asyncio.wait([waiting], timeout=STOP_SECONDS)
        if not waiting.done():
            names = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("penstock"))
            logger.warning("closing waits for reads or computations, which cannot be stopped: %s", ", ".join(names))
        await waiting
        if self._giving_back is not None:
            self._giving_back.join()  # it is at its end, and until then its frames hold the model

    def _begin_giving_back(self) -> "Future[None]":
        if self._given_back is None:
            given_back: Future[None] = Future()
            given_back.set_running_or_notify_cancel()  # a caller that is cancelled while it waits cannot stop it
            with limits_named(), contextlib.ExitStack() as undone:
                loop = asyncio.new_event_loop()
                undone.callback(loop.close)
                thread = threading.Thread(target=self._run_giving_back, args=[loop, given_back], daemon=True)
                thread.start()
                undone.pop_all()
            self._giving_back = thread
            self._given_back = given_back  # where a descriptor or a thread is missing, another call tries again
        return self._given_back

    def _run_giving_back(self, loop: asyncio.AbstractEventLoop, given_back: "Future[None]") -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._runtime.aclose())
        except BaseException as error:
            given_back.set_exception(portable(error))
        else:
            given_back.set_result(None)

    def _loop_runs(self) -> bool:
        """Whether the model's event loop still runs, in this process: a fork has no threads."""
        return self._loop.is_running() and os.getpid() == self._process


def _closed() -> ClosedError:
    return ClosedError("the model was closed before the request had finished")


def _no_more(why: str) -> ClosedError:
    return ClosedError(f"the model serves no more requests: {why}; close it, and open it again")
