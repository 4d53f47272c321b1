"""What calls share: the KV of tokens that their prompts begin with, never a token of the answer, nor across scopes."""

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models

from pipeline import ClosedError, Model
from pipeline.generation.batching import Batcher, Piece
from pipeline.generation.sequence import RunningSequence
from pipeline.models import decoder, pass_attention

DRAW = random.Random(11)
SYSTEM = [DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(70)]
QUESTIONS = [[DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(count)] for count in (1, 9, 30)]
ROOM: dict[str, Any] = {"dtype": "float32", "context_tokens": 160, "kv_tokens": 1600}


@pytest.fixture(scope="module", params=tiny_models.UNLIKE)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_models.save("llama_gqa_llama3", folder)
    return folder


async def answer(model: Model, prompt: list[int], **arguments: Any) -> list[int]:
    settings = {"max_new_tokens": 8, "ignore_eos": True, **arguments}
    return list((await model.generate(prompt, **settings)).token_ids)


async def computed(model: Model, prompt: list[int], **arguments: Any) -> int:
    """How many tokens a call passes through the model."""
    before = model.statistics().computed_tokens
    await answer(model, prompt, **arguments)
    return model.statistics().computed_tokens - before


async def test_sharing_saves_tokens_and_changes_none_in_every_family(variant: Path) -> None:
    async with Model.open(variant, **ROOM) as model:
        expected = [await answer(model, SYSTEM + question) for question in QUESTIONS]
        alone = model.statistics()
        assert alone.prefixes.hit_tokens == alone.prefixes.queried_tokens == alone.prefixes.cached_blocks == 0
        assert [await answer(model, SYSTEM + question, cache_scope="a") for question in QUESTIONS] == expected
        shared = model.statistics()
        assert shared.prefixes.hit_tokens == 2 * 64
        assert shared.prefixes.queried_tokens == 3 * 70 + 40
        assert shared.computed_tokens - alone.computed_tokens == alone.computed_tokens - 2 * 64
        together = (answer(model, SYSTEM + question, cache_scope="a") for question in QUESTIONS)
        assert await asyncio.gather(*together) == expected


async def test_a_conversation_computes_each_token_once(checkpoint: Path) -> None:
    async with Model.open(checkpoint, **ROOM) as model:
        first = await answer(model, SYSTEM, max_new_tokens=30)
        expected = await answer(model, [*SYSTEM, *first, 5, 6])
        assert await answer(model, SYSTEM, max_new_tokens=30, cache_scope="chat") == first
        before = model.statistics().computed_tokens
        assert await answer(model, [*SYSTEM, *first, 5, 6], cache_scope="chat") == expected
        assert model.statistics().computed_tokens - before == 102 - 96 + 7


@pytest.mark.parametrize("share_prefixes", [False, True])
async def test_only_calls_of_one_scope_share(checkpoint: Path, share_prefixes: bool) -> None:
    """A named scope stays apart even where calls without one share."""
    async with Model.open(checkpoint, share_prefixes=share_prefixes, **ROOM) as model:
        for scope in ("a", "b", None):
            assert await computed(model, SYSTEM, cache_scope=scope) == 77
        assert await computed(model, SYSTEM, cache_scope="b") == 77 - 64
        assert await computed(model, SYSTEM) == (77 - 64 if share_prefixes else 77)


async def test_samples_are_those_of_as_many_calls_and_compute_the_prompt_once(checkpoint: Path) -> None:
    arguments: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "ignore_eos": True}
    async with Model.open(checkpoint, **ROOM) as model:
        expected = [await model.generate(SYSTEM, seed=7 + index, **arguments) for index in range(4)]
        before = model.statistics()
        assert await model.generate(SYSTEM, n=4, seed=7, **arguments) == expected
        after = model.statistics()
        assert after.computed_tokens - before.computed_tokens == 70 + 3 * 6 + 4 * 5
        assert after.passes - before.passes == 7
        assert len({output.token_ids for output in expected}) == 4
        assert await model.generate(SYSTEM, n=1, seed=7, **arguments) == expected[:1]
        different = await model.generate(SYSTEM, n=4, **arguments)
        assert len({output.token_ids for output in different}) > 1


async def test_cancelling_a_call_ends_all_its_samples(checkpoint: Path) -> None:
    async with Model.open(checkpoint, **ROOM) as model:
        expected = await answer(model, SYSTEM)
        for passes in (0, 1, 3):
            call = asyncio.create_task(model.generate(SYSTEM, n=5, max_new_tokens=80, ignore_eos=True))
            before = model.statistics().passes
            await asyncio.sleep(0)
            while model.statistics().passes < before + passes:
                await asyncio.sleep(0.001)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert await answer(model, SYSTEM) == expected
        statistics = model.statistics()
        assert (statistics.requests.cancelled, statistics.kv_blocks.used) == (15, 0)


async def test_under_pressure_cached_blocks_give_way(checkpoint: Path) -> None:
    """Room for little more than one request: scopes evict each other, nobody waits for a cached block."""
    prompts = [[scope, *SYSTEM[:40]] for scope in (4, 5, 6, 7)]
    async with Model.open(checkpoint, dtype="float32", context_tokens=64, kv_tokens=80) as model:
        expected = [await answer(model, prompt) for prompt in prompts]
        for _ in range(3):
            calls = [answer(model, prompt, cache_scope=str(prompt[0])) for prompt in prompts]
            assert await asyncio.gather(*calls) == expected
        blocks, prefixes = model.statistics().kv_blocks, model.statistics().prefixes
        assert (blocks.used, blocks.total) == (0, 5)
        assert 0 < prefixes.cached_blocks <= 5
        assert await answer(model, prompts[3], cache_scope="7") == expected[3]
        assert model.statistics().prefixes.hit_tokens > prefixes.hit_tokens


async def test_the_lowest_priority_is_answered_first(checkpoint: Path) -> None:
    order: list[int] = []

    async def one(model: Model, priority: int) -> None:
        await answer(model, [1, 2, 3], priority=priority)
        order.append(priority)

    async with Model.open(checkpoint, max_requests=1, **ROOM) as model:
        await asyncio.gather(*(one(model, priority) for priority in (3, 1, -2, 1, 0)))
    assert order == [-2, 0, 1, 1, 3]


async def test_a_failure_of_the_line_drops_what_was_cached(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ffn_half, failures = decoder.ffn_half, [ValueError("the kernel failed")]

    def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return ffn_half(*arguments)

    async with Model.open(checkpoint, **ROOM) as model:
        expected = await answer(model, SYSTEM, cache_scope="a")
        monkeypatch.setattr(decoder, "ffn_half", failing)
        assert await answer(model, SYSTEM, cache_scope="b") == expected
        assert await computed(model, SYSTEM, cache_scope="a") == 77
        assert await answer(model, SYSTEM, cache_scope="a") == expected


async def test_a_request_that_ends_within_a_shared_pass_is_skipped_from_there_on(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its attention is not computed any more, the others keep their tokens, and what it wrote is never shared."""
    attend, next_pass = pass_attention.attend, Batcher.next_pass
    attended: list[int] = []
    lanes = threading.Lock()
    running: list[RunningSequence] = []

    def pieces_of(self: Batcher, *sizes: Any) -> list[Piece]:
        pieces = next_pass(self, *sizes)
        running[:] = [piece.sequence for piece in pieces]
        return pieces

    def spy(q_TNH: Any, *arguments: Any) -> Any:
        with lanes:
            attended.append(len(q_TNH))
            if len(attended) == 2:
                gone = next(one for one in running if len(one.prompt_ids) == 70)
                gone.cancel()
        return attend(q_TNH, *arguments)

    async with Model.open(checkpoint, **ROOM) as model:
        expected = await answer(model, QUESTIONS[2])
        monkeypatch.setattr(pass_attention, "attend", spy)
        monkeypatch.setattr(Batcher, "next_pass", pieces_of)
        call = asyncio.create_task(answer(model, SYSTEM, cache_scope="a"))
        assert await answer(model, QUESTIONS[2]) == expected
        layers = model.runtime.config.layers
        assert attended.count(70) == 1 < layers
        assert attended.count(30) == layers
        assert model.statistics().prefixes.cached_blocks == 0
        assert model.statistics().requests.cancelled == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def test_draining_finishes_what_runs_and_waits_and_refuses_the_rest(checkpoint: Path) -> None:
    model = await Model.open(checkpoint, max_requests=2, **ROOM)
    expected = await answer(model, SYSTEM)
    calls = [asyncio.create_task(answer(model, SYSTEM)) for _ in range(5)]
    stream = model.stream(SYSTEM, max_new_tokens=8, ignore_eos=True)
    first = await anext(stream)
    closing = asyncio.create_task(model.aclose(drain=True))
    await asyncio.sleep(0)
    with pytest.raises(ClosedError, match="the model is closed"):
        await answer(model, SYSTEM)
    await closing
    assert [call.done() for call in calls] == [True] * 5
    assert await asyncio.gather(*calls) == [expected] * 5
    rest = [token_id async for chunk in stream for token_id in chunk.token_ids]
    assert [*first.token_ids, *rest] == expected, "a slow reader finds the rest of its answer"


async def test_closing_cuts_a_drain_short_and_a_cancelled_drain_still_refuses(checkpoint: Path) -> None:
    model = await Model.open(checkpoint, **ROOM)
    call = asyncio.create_task(answer(model, SYSTEM, max_new_tokens=90))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.005):
            await model.aclose(drain=True)
    assert not call.done()
    with pytest.raises(ClosedError):
        await answer(model, SYSTEM)
    draining = asyncio.create_task(model.aclose(drain=True))
    await asyncio.sleep(0)
    await model.aclose()
    await draining
    with pytest.raises(ClosedError, match="before the request had finished"):
        await call


@pytest.mark.parametrize("policy", ["backpressure", "stage3"])
async def test_cancelled_calls_leave_nothing_wrong_in_the_cache(checkpoint: Path, policy: str) -> None:
    """Half of the calls go at random moments, within passes too, while the others use what these have computed."""
    draw = random.Random(5)
    prompts = [SYSTEM[: draw.randint(20, 70)] + draw.choice(QUESTIONS) for _ in range(14)]
    settings = {**ROOM, "kv_tokens": 400, "policy": policy, "max_tokens_per_pass": 48}
    async with Model.open(checkpoint, **settings) as model:
        expected = [await answer(model, prompt) for prompt in prompts]
        calls = [asyncio.create_task(answer(model, prompt, cache_scope="a")) for prompt in prompts]
        for index in draw.sample(range(14), 7):
            await asyncio.sleep(draw.random() * 0.01)
            calls[index].cancel()
        outputs = await asyncio.gather(*calls, return_exceptions=True)
        answered = [index for index, output in enumerate(outputs) if not isinstance(output, asyncio.CancelledError)]
        assert len(answered) >= 7
        assert [outputs[index] for index in answered] == [expected[index] for index in answered]
        assert [await answer(model, prompt, cache_scope="a") for prompt in prompts] == expected
        assert model.statistics().kv_blocks.used == 0
        assert model.statistics().requests.failed == 0
