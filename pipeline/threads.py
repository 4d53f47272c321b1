"""What the event loop and threads say to each other. A thread cannot be stopped."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

GIVE_WAY_SECONDS = 0.0002


def slices(length: int, size: int) -> Iterator[int]:
    """Where each slice of a long piece of work in Python begins, on a thread beside the event loop.

    Between two slices others get the interpreter lock; else they get it every 5 ms (`sys.getswitchinterval`), and a
    pass, which takes it often, would last ten times as long.
    """
    for begin in range(0, length, size):
        if begin:
            time.sleep(GIVE_WAY_SECONDS)
        yield begin


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


def tell(loop: asyncio.AbstractEventLoop, *events: asyncio.Event) -> None:
    """Set events of a loop from a thread, unless the loop has closed and nobody waits any more."""

    def set_all() -> None:
        for event in events:
            event.set()

    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(set_all)
