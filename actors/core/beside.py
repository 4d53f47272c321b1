"""Lines that run beside each other: the end of one is the end of all."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from actors.core.crew import Crew, Over, stop

if TYPE_CHECKING:
    from actors.core.line import Line


@contextlib.asynccontextmanager
async def running(lines: "Sequence[Line]") -> AsyncIterator[Over]:
    """Run lines, and give what tells the end of the first; leaving stops them all, after which they can run anew.

    Whoever enters hears of a failure at once, but leaves only when everybody has stopped, or will not. Raises LineError
    when a line runs already, and ActorFailed when one from its last run has not ended.
    """
    over: Over = asyncio.get_running_loop().create_future()
    crews: list[Crew] = []
    with contextlib.ExitStack() as stack:
        for line in lines:
            stack.enter_context(line.at_work())
        for line in lines:
            await line.at_rest()
        try:
            crews += [line.begin(over) for line in lines]
            yield over
        finally:
            over.cancel()
            await stop(crews)


async def run_beside(lines: "Sequence[Line]") -> None:
    """Run lines until one has ended, then stop the others. Raises the first failure."""
    async with running(lines) as over:
        failure = await over
    if failure is not None:
        raise failure from failure.__cause__
