"""Several streams as one."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


async def merged(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """What each stream gives, as it comes, with the number of the stream; they are closed with this.

    What one raises ends all. None runs ahead of its reader by more than one item.
    """
    if len(streams) == 1:
        async with contextlib.aclosing(streams[0]) as stream:
            async for item in stream:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, Item] | BaseException | None] = asyncio.Queue(1)
    tasks = [asyncio.create_task(_pump(number, stream, queue)) for number, stream in enumerate(streams)]
    try:
        for _ in streams:
            while (told := await queue.get()) is not None:
                if isinstance(told, BaseException):
                    raise told
                yield told
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    number: int,
    stream: AsyncGenerator[Item, None],
    queue: "asyncio.Queue[tuple[int, Item] | BaseException | None]",
) -> None:
    try:
        async with contextlib.aclosing(stream):
            async for item in stream:
                await queue.put((number, item))
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)
