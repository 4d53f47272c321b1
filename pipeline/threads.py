"""What the event loop and threads say to each other. A thread cannot be stopped."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any


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


def tell(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    """Set an event of a loop from a thread, unless the loop has closed and nobody waits any more."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(ended.set)
