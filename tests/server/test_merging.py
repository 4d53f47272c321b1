"""Streams of several prompts are one stream, which ends, fails and is left as one."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from pipeline.server.merging import merged


class Streams:
    """Streams that count what was taken of them, and whether they were closed."""

    def __init__(self, *lengths: int, fails_at: int | None = None) -> None:
        self.given = [0] * len(lengths)
        self.closed: list[int] = []
        self._fails_at = fails_at
        self.all = [self._stream(number, length) for number, length in enumerate(lengths)]

    async def _stream(self, number: int, length: int) -> AsyncGenerator[int, None]:
        try:
            for item in range(length):
                if item == self._fails_at:
                    raise ValueError("on purpose")
                await asyncio.sleep(0)
                self.given[number] += 1
                yield item
        finally:
            self.closed.append(number)


@pytest.mark.parametrize("lengths", [(3,), (2, 0, 5)])
async def test_all_items_come_in_the_order_of_each_stream(lengths: tuple[int, ...]) -> None:
    streams = Streams(*lengths)
    items = [item async for item in merged(streams.all)]
    for number, length in enumerate(lengths):
        assert [item for of, item in items if of == number] == list(range(length))
    assert sorted(streams.closed) == list(range(len(lengths)))


@pytest.mark.parametrize("count", [1, 3])
async def test_what_one_raises_ends_all(count: int) -> None:
    streams = Streams(*[1000] * count, fails_at=5)
    with pytest.raises(ValueError, match="on purpose"):
        async for _ in merged(streams.all):
            pass
    assert sorted(streams.closed) == list(range(count))


@pytest.mark.parametrize("count", [1, 3])
async def test_leaving_closes_all_and_none_has_run_ahead(count: int) -> None:
    streams, tasks = Streams(*[1000] * count), len(asyncio.all_tasks())
    async with contextlib.aclosing(merged(streams.all)) as items:
        await anext(items)
        for _ in range(20):
            await asyncio.sleep(0)
        assert max(streams.given) <= 3, "the model pauses streams that are not read"
    assert sorted(streams.closed) == list(range(count))
    assert len(asyncio.all_tasks()) == tasks
