"""Lines that run beside each other: the end of one is the end of all."""

import asyncio
from collections.abc import Sequence

from actors.core.line import Line


async def run_beside(lines: Sequence[Line]) -> None:
    """Run lines until one has ended, then stop the others. Raises the first failure; afterwards all can run anew.

    Not in a task group, since each line is one already (rule 10).
    """
    runs = [asyncio.ensure_future(line.run()) for line in lines]
    failed: list[BaseException] = []
    cancelled = False
    try:
        ended, _ = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
        failed = [error for run in runs if run in ended and (error := run.exception()) is not None]
    finally:
        for run in runs:
            run.cancel()
        while not all(run.done() for run in runs):
            try:
                await asyncio.wait(runs)
            except asyncio.CancelledError:
                cancelled = True
    failed += [error for run in runs if not run.cancelled() and (error := run.exception()) is not None]
    if cancelled:
        raise asyncio.CancelledError
    if failed:
        raise failed[0]
