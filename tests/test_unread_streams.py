"""A stream that nobody reads pauses its request, and goes on with the same tokens; nobody else waits for it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from support.small_checkpoints import write_small_checkpoint

from pipeline import Chunk, ClosedError, Model

MOST_UNREAD = 6
NEW_TOKENS = 3 * MOST_UNREAD
SETTINGS: dict[str, Any] = {"device": "cpu", "context_tokens": 64, "kv_tokens": 256}
SAMPLED = {"temperature": 1.5, "seed": 7, "repetition_penalty": 1.1, "logprobs": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unread") / "model"
    write_small_checkpoint(folder, "llama-3-8b")
    return folder


@pytest.fixture(autouse=True)
def few_may_lie_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.answering.MOST_UNREAD", MOST_UNREAD)


def stream(model: Model, first: int = 5, **arguments: Any) -> AsyncGenerator[Chunk, None]:
    return model.stream([first, 9, 1], max_new_tokens=NEW_TOKENS, ignore_eos=True, **arguments)


async def rest(chunks: AsyncGenerator[Chunk, None], count: int = NEW_TOKENS) -> list[Chunk]:
    """The next chunks of a stream, at most so many."""
    read: list[Chunk] = []
    while len(read) < count:
        with contextlib.suppress(StopAsyncIteration):
            read.append(await anext(chunks))
            continue
        break
    return read


async def stands_still(model: Model) -> int:
    """The passes that there have been, once no more come."""
    passes = -1
    async with asyncio.timeout(20):
        while passes != model.runtime.program.passes or model.runtime.admission.in_pass:
            passes = model.runtime.program.passes
            await asyncio.sleep(0.05)
    return passes


@pytest.mark.parametrize("arguments", [{}, SAMPLED], ids=["greedy", "sampled"])
async def test_it_pauses_and_goes_on_with_the_same_tokens(arguments: dict[str, Any], checkpoint: Path) -> None:
    async with Model.open(checkpoint, **SETTINGS) as model:
        async with contextlib.aclosing(stream(model, **arguments)) as chunks:
            expected = [chunk async for chunk in chunks]
        before = model.runtime.program.passes
        async with contextlib.aclosing(stream(model, **arguments)) as chunks:
            read = await rest(chunks, 1)
            passes = await stands_still(model)
            assert passes - before == 1 + MOST_UNREAD, "one for each chunk that may lie there"
            assert model.statistics().kv_blocks.used > 0, "it keeps its blocks"
            assert (model.statistics().requests.running, model.statistics().requests.paused) == (1, 1)
            read += await rest(chunks, 2)
            assert await stands_still(model) == passes + 2
            assert read + await rest(chunks) == expected
            assert model.statistics().requests.paused == 0


async def test_others_are_served_meanwhile_and_generate_never_pauses(checkpoint: Path) -> None:
    async with Model.open(checkpoint, **SETTINGS, max_requests=2) as model:
        expected = await model.generate([6, 9, 1], max_new_tokens=NEW_TOKENS, ignore_eos=True)
        async with contextlib.aclosing(stream(model)) as unread:
            await rest(unread, 1)
            await stands_still(model)
            calls = [model.generate([6, 9, 1], max_new_tokens=NEW_TOKENS, ignore_eos=True) for _ in range(3)]
            assert await asyncio.gather(*calls) == [expected] * 3, "one after the other, beside the one that has paused"
            requests = model.statistics().requests
            assert (requests.running, requests.waiting) == (1, 0)


async def test_where_there_is_no_room_the_next_waits_until_it_is_read_or_left(checkpoint: Path) -> None:
    async with asyncio.timeout(30), Model.open(checkpoint, **SETTINGS, max_requests=1) as model:
        for leaves in (True, False):
            unread = stream(model)
            await rest(unread, 1)
            await stands_still(model)
            behind = asyncio.create_task(model.generate([6, 9, 1], max_new_tokens=2))
            passes = await stands_still(model)
            await asyncio.sleep(0.05)
            assert (behind.done(), await stands_still(model)) == (False, passes), "and no pass is made for nobody"
            await (unread.aclose() if leaves else rest(unread))
            assert len((await behind).token_ids) == 2


@pytest.mark.parametrize("drain", [True, False], ids=["drained", "closed"])
async def test_closing_waits_for_no_reader(drain: bool, checkpoint: Path) -> None:
    async with asyncio.timeout(30), Model.open(checkpoint, **SETTINGS) as model:
        async with contextlib.aclosing(stream(model)) as chunks:
            expected = [chunk async for chunk in chunks]
        unread = stream(model)
        read = await rest(unread, 1)
        await stands_still(model)
        await model.aclose(drain=drain)
        if drain:
            assert read + await rest(unread) == expected
        else:
            assert read + await rest(unread, MOST_UNREAD) == expected[: 1 + MOST_UNREAD]
            with pytest.raises(ClosedError):
                await anext(unread)
