"""Samples of one prompt come as a stream: whose chunk each is, what their prompt cost, and how they end together."""

import contextlib
import itertools
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models

from pipeline import Chunk, Model, RequestError

PROMPT = list(range(3, 73))
ROOM: dict[str, Any] = {"dtype": "float32", "context_tokens": 160, "kv_tokens": 1600}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 7, "logprobs": 2, "max_new_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_models.save("llama_gqa_llama3", folder)
    return folder


async def read(stream: AsyncGenerator[Chunk, None]) -> list[Chunk]:
    async with contextlib.aclosing(stream) as chunks:
        return [chunk async for chunk in chunks]


async def test_streamed_samples_are_those_that_generate_gives_and_come_side_by_side(checkpoint: Path) -> None:
    async with Model.open(checkpoint, **ROOM) as model:
        expected = await model.generate(PROMPT, n=3, **SAMPLED)
        chunks = await read(model.stream(PROMPT, n=3, **SAMPLED))
        for index, output in enumerate(expected):
            own = [chunk for chunk in chunks if chunk.index == index]
            assert tuple(token_id for chunk in own for token_id in chunk.token_ids) == output.token_ids
            assert tuple(chunk.logprobs for chunk in own) == output.logprobs
            assert [chunk.finish_reason for chunk in own] == [None] * 5 + ["length"]
        assert {chunk.index for chunk in chunks[4:10]} == {0, 1, 2}, "no sample waits for another to end"
        assert await read(model.stream(PROMPT, n=1, **SAMPLED)) == await read(model.stream(PROMPT, **SAMPLED))


async def test_chunks_and_outputs_say_how_much_of_the_prompt_was_found(checkpoint: Path) -> None:
    async with Model.open(checkpoint, **ROOM) as model:
        for found in (0, 64):
            chunks = await read(model.stream(PROMPT, n=2, cache_scope="a", **SAMPLED))
            assert {chunk.prompt_tokens for chunk in chunks} == {70}
            assert {chunk.cached_tokens for chunk in chunks if chunk.index == 0} == {found}
            assert {chunk.cached_tokens for chunk in chunks if chunk.index == 1} == {64}, "what the first has computed"
        assert (await model.generate(PROMPT, cache_scope="a", **SAMPLED)).cached_tokens == 64
        assert (await model.generate(PROMPT, cache_scope="b", **SAMPLED)).cached_tokens == 0


@pytest.mark.parametrize("fails", [True, False], ids=["one fails", "the reader leaves"])
async def test_one_end_ends_all_samples_and_frees_what_they_held(fails: bool, checkpoint: Path) -> None:
    calls = itertools.count(1)

    def fifth_fails(token_ids: list[int], logits: Any) -> Any:
        if next(calls) == 5:
            raise ValueError("on purpose")
        return logits

    async with Model.open(checkpoint, **ROOM) as model:
        processor = fifth_fails if fails else None
        stream = model.stream(PROMPT, n=3, logits_processor=processor, **{**SAMPLED, "max_new_tokens": 80})
        if fails:
            with pytest.raises(RequestError, match="on purpose"):
                await read(stream)
        else:
            await anext(stream)
            await stream.aclose()
        while model.statistics().requests.running:
            await model.generate([5], max_new_tokens=1)
        requests = model.statistics().requests
        assert (requests.failed, requests.cancelled) == ((1, 2) if fails else (0, 3))
        assert model.statistics().kv_blocks.used == 0
