"""Prompts of megabytes: refused before any work, or served while everybody else's tokens go on coming."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from support import tiny_models
from support.busy_machine import queued_seconds
from text import small_tokenizers as small

from pipeline import ClosedError, Model, RequestError
from pipeline.text import prompts
from pipeline.text.byte_pair import BytePairEngine
from pipeline.text.tokenizer import Tokenizer

CONTEXT = 1 << 21
TEXT = "def f(x): return x\n" * 60_000  # a megabyte, and as many tokens


def save(folder: Path, **tokenizer_config: Any) -> Path:
    """A model with a token for each byte, and keys and values small enough for two million of them."""
    tiny_models.save("llama_linear", folder, layers=1)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": CONTEXT}))
    return small.save_rank_file([bytes([value]) for value in range(256)], folder, **tokenizer_config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("long"))


@pytest.fixture
async def model(folder: Path) -> AsyncIterator[Model]:
    async with Model.open(folder, device="cpu", context_tokens=CONTEXT) as opened:
        yield opened


async def longest_pause(model: Model, call: Any) -> float:
    """How long the event loop stands still, at most, until the call has ended or its prompt is being computed.

    Another request is served meanwhile. What this thread waits for a core is not counted, for the interpreter lock is.
    """
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            began, queued = time.perf_counter(), queued_seconds()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - began - (queued_seconds() - queued))

    other = asyncio.create_task(model.generate([5], max_new_tokens=100_000, ignore_eos=True))
    while model.statistics().tokens < 5:
        await asyncio.sleep(0.01)
    calling, beating = asyncio.create_task(call), asyncio.create_task(beat())
    async with asyncio.timeout(60):
        while not calling.done() and model.statistics().requests.running < 2:
            await asyncio.sleep(0.01)
    for task in (calling, beating, other):
        task.cancel()
    await asyncio.gather(calling, beating, other, return_exceptions=True)
    return longest


@pytest.mark.parametrize("kind", ["text", "combining marks", "ids", "array"])
async def test_nobody_else_waits_while_a_long_prompt_is_made_ready(model: Model, kind: str) -> None:
    prompt: Any = {
        "text": TEXT,
        "combining marks": "e\u0301 " * 200_000,
        "ids": [3] * 1_000_000,
        "array": numpy.full(1_000_000, 3),
    }[kind]
    for attempt in range(4):  # what holds the interpreter lock holds it every time; a machine that is busy does not
        call = model.generate(prompt, max_new_tokens=1, cache_scope=f"{attempt}", repetition_penalty=1.1)
        if (pause := await longest_pause(model, call)) < 0.05:
            return
    pytest.fail(f"the event loop stood still for {pause * 1000:.0f} ms")


async def test_others_get_many_turns_of_the_loop_while_the_ids_of_a_generator_are_taken(model: Model) -> None:
    turns, slices = 0, 50

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    def ids() -> Iterator[int]:
        nonlocal turns
        turns = 0
        yield from (3 for _ in range(slices * prompts.SLICE_TOKENS))
        assert turns > 3 * slices, "a pass, which takes a hundred turns, would last a hundred slices"

    turning = asyncio.create_task(turn())
    calling = asyncio.create_task(model.generate(ids(), max_new_tokens=1))
    while not calling.done() and model.statistics().requests.running < 1:
        await asyncio.sleep(0.01)
    turning.cancel()
    calling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await calling


async def test_a_text_that_can_never_fit_is_refused_by_its_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Model.open(folder, device="cpu", context_tokens=1000) as model:
        monkeypatch.setattr(BytePairEngine, "encode", None)
        with pytest.raises(RequestError, match=r"need room for at least \d+ prompt and 1 new tokens, have 1000: "):
            await model.generate(TEXT, max_new_tokens=1)
        with pytest.raises(RequestError, match="at least"):
            model.stream(TEXT, max_new_tokens=1)
        with pytest.raises(RequestError, match=r"need room for 10000000 prompt"):
            model.stream(range(10_000_000))


async def test_a_text_that_fits_by_its_bytes_only_is_refused_by_its_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Model.open(folder, device="cpu", context_tokens=1000) as model:
        monkeypatch.setattr(Tokenizer, "fewest_tokens", lambda self, text: 1)
        with pytest.raises(RequestError, match=r"need room for 1000 prompt and 1 new tokens, have 1000"):
            await model.generate("x^" * 500, max_new_tokens=1)
        stream = model.stream("x^" * 500, max_new_tokens=1)
        with pytest.raises(RequestError, match=r"need room for 1000 prompt"):
            await anext(stream)


async def test_ids_without_end_are_refused_when_they_are_too_many(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "SLICE_TOKENS", 16)
    async with Model.open(folder, device="cpu", context_tokens=500) as model:
        with pytest.raises(RequestError, match=r"need room for at least 448 prompt and 64 new tokens, have 500"):
            await model.generate(iter(lambda: 3, None))
        ids = [*[3] * 16, 7, -1]
        stream = model.stream(ids)
        with pytest.raises(RequestError, match="have -1 at 17"):
            await anext(stream)
        assert (await model.generate(iter(ids[:-1]), max_new_tokens=1)).prompt_token_ids == tuple(ids[:-1])


async def test_closing_ends_a_call_whose_text_is_tokenised_and_draining_waits_for_it(folder: Path) -> None:
    for drain, outcome in ((False, ClosedError), (True, tuple)):
        model = await Model.open(folder, device="cpu", context_tokens=10_000)
        call = asyncio.create_task(model.generate(TEXT[:2000], max_new_tokens=1))
        await asyncio.sleep(0)
        requests = model.statistics().requests
        assert (requests.tokenizing, requests.waiting, requests.running) == (1, 0, 0)
        await model.aclose(drain=drain)
        [result] = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(getattr(result, "token_ids", result), outcome)
        assert model.statistics().requests.tokenizing == 0


async def test_a_template_that_begins_with_bos_does_not_double_it(tmp_path: Path) -> None:
    tokens = {"256": {"content": "<s>", "special": True}}
    save(tmp_path, bos_token="<s>", add_bos_token=True, added_tokens_decoder=tokens)
    async with Model.open(tmp_path, device="cpu", context_tokens=100) as model:
        for text, ids in {
            "ab": (256, 97, 98),
            "<s>ab": (256, 97, 98),
            "<s>": (256,),
            "<s><s>ab": (256, 256, 97, 98),
            "a<s>b": (256, 97, 256, 98),
        }.items():
            assert (await model.generate(text, max_new_tokens=1)).prompt_token_ids == ids
        assert (await model.generate([256, 256, 97], max_new_tokens=1)).prompt_token_ids == (256, 256, 97)


async def test_a_text_keeps_its_bos_tokens_where_the_tokenizer_adds_none(tmp_path: Path) -> None:
    tokens = {"256": {"content": "<s>", "special": True}}
    save(tmp_path, bos_token="<s>", add_bos_token=False, added_tokens_decoder=tokens)
    async with Model.open(tmp_path, device="cpu", context_tokens=100) as model:
        assert (await model.generate("<s><s>a", max_new_tokens=1)).prompt_token_ids == (256, 256, 97)
