"""Keeps the lines of an open model running, tells the callers of a failure, and closes."""

import asyncio
import logging

from actors.core.errors import LineError
from pipeline.build import Runtime
from pipeline.errors import ClosedError

logger = logging.getLogger("penstock")


class Supervisor:
    """Runs the lines in a task of its own. Weights never change, so recovery is to run them anew (rule 7)."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._task = asyncio.create_task(self._supervise(), name="penstock")
        self._closing: asyncio.Task[None] | None = None

    def done(self) -> bool:
        """Whether nobody runs the lines any more."""
        return self._task.done()

    async def aclose(self) -> None:
        """Stop the lines, end all requests with ClosedError, and give everything back.

        Every call waits for the same closing, which goes on when a call is cancelled.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="penstock-close")
        await asyncio.shield(self._closing)

    async def _supervise(self) -> None:
        while True:
            try:
                await self._runtime.run()
                raise LineError("the line ended, though its plan has no end")
            except Exception as error:
                logger.error("%s", error)
                self._tell_callers(error)
            await self._runtime.program.wanted()

    def _tell_callers(self, error: Exception) -> None:
        """Say who is told of a failure of the line: everybody who waits or runs. Only when the line has stopped."""
        self._runtime.program.fail(error)

    async def _close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._tell_callers(ClosedError("the model was closed before the request had finished"))
        await self._runtime.aclose()
