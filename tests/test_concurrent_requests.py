"""Requests that share passes: fewer passes, the same tokens, and nobody pays for another's end."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models

from pipeline import Model, RequestError

NEW_TOKENS = 32


def prompts(count: int, most_tokens: int = 40) -> list[list[int]]:
    """Prompts of mixed length."""
    draw = random.Random(count)
    return [
        [draw.randrange(1, tiny_models.VOCABULARY_SIZE) for _ in range(draw.randint(1, most_tokens))]
        for _ in range(count)
    ]


@pytest.fixture(scope="module", params=tiny_models.UNLIKE)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_models.save("llama_gqa_llama3", folder)
    return folder


async def alone(model: Model, prompt: list[int], **arguments: Any) -> tuple[int, ...]:
    return (await model.generate(prompt, ignore_eos=True, **arguments)).token_ids


async def test_sixty_four_requests_share_their_passes(checkpoint: Path) -> None:
    many = prompts(64)
    async with Model.open(checkpoint, context_tokens=96, kv_tokens=64 * 96) as model:
        expected = [await alone(model, prompt, max_new_tokens=NEW_TOKENS) for prompt in many[::16]]
        before = model.statistics().passes
        outputs = await asyncio.gather(*(alone(model, prompt, max_new_tokens=NEW_TOKENS) for prompt in many))
        passes = model.statistics().passes - before
        assert outputs[::16] == expected
        assert passes <= 40
        assert model.statistics().requests.finished == 64 + 4


async def test_in_every_family_company_changes_no_token(variant: Path) -> None:
    """Sampled too: with a seed, a request draws the same tokens whoever else is there."""
    many = prompts(6)
    arguments: Callable[[int], dict[str, Any]] = lambda index: {  # noqa: E731
        "max_new_tokens": 4 + 3 * index,
        "temperature": 0.8 if index % 2 else 0.0,
        "seed": index,
    }
    async with Model.open(variant, dtype="float32", context_tokens=96, kv_tokens=600) as model:
        expected = [await alone(model, prompt, **arguments(index)) for index, prompt in enumerate(many)]
        together = (alone(model, prompt, **arguments(index)) for index, prompt in enumerate(many))
        assert await asyncio.gather(*together) == expected


@pytest.mark.parametrize(
    "settings", [{"policy": "stage3"}, {"policy": "history1"}, {"max_tokens_per_pass": 3}], ids=str
)
async def test_whatever_the_passes_carry(settings: dict[str, Any], checkpoint: Path) -> None:
    """Micro-batches cut through sequences; few tokens per pass let requests take turns."""
    many = prompts(5)
    async with Model.open(checkpoint, context_tokens=96, kv_tokens=600) as model:
        expected = [await alone(model, prompt, max_new_tokens=6) for prompt in many]
    async with Model.open(checkpoint, context_tokens=96, kv_tokens=600, **settings) as model:
        assert await asyncio.gather(*(alone(model, prompt, max_new_tokens=6) for prompt in many)) == expected


async def test_those_for_whom_there_is_no_room_wait(checkpoint: Path) -> None:
    many = prompts(8, most_tokens=10)
    async with Model.open(checkpoint, context_tokens=32, kv_tokens=64) as model:
        expected = [await alone(model, prompt, max_new_tokens=8) for prompt in many]
        assert await asyncio.gather(*(alone(model, prompt, max_new_tokens=8) for prompt in many)) == expected
        statistics = model.statistics()
        assert statistics.kv_blocks.peak == statistics.kv_blocks.total == 4
        assert statistics.kv_blocks.used == 0


async def test_cancelled_requests_change_nobodys_tokens_and_keep_nothing(checkpoint: Path) -> None:
    draw, many = random.Random(3), prompts(45)
    async with Model.open(checkpoint, context_tokens=96, kv_tokens=10 * 96) as model:
        expected = await asyncio.gather(*(alone(model, prompt, max_new_tokens=12) for prompt in many))
        calls = [asyncio.create_task(alone(model, prompt, max_new_tokens=12)) for prompt in many]
        gone = set(draw.sample(range(45), 15))
        for index in gone:
            await asyncio.sleep(draw.random() * 0.02)
            calls[index].cancel()
        outputs = await asyncio.gather(*calls, return_exceptions=True)
        for index, output in enumerate(outputs):
            assert output == expected[index] or (index in gone and isinstance(output, asyncio.CancelledError))
        await alone(model, [1], max_new_tokens=1)
        statistics = model.statistics()
        assert statistics.kv_blocks.used == 0
        assert (statistics.requests.running, statistics.requests.waiting, statistics.requests.failed) == (0, 0, 0)
        # One that was told to go when its last token had come has finished.
        assert 0 < statistics.requests.cancelled <= sum(isinstance(one, asyncio.CancelledError) for one in outputs)
        assert statistics.requests.cancelled + statistics.requests.finished == 2 * len(many) + 1
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert not names & {call.get_name() for call in calls}


async def test_one_that_fails_ends_alone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.generation.sampling import Sampler

    def fails_for_the_second(self: Sampler) -> float:
        if self.parameters.seed == 2:
            raise ZeroDivisionError("no random number")
        return 0.5

    many = prompts(3)
    async with Model.open(checkpoint, context_tokens=96, kv_tokens=600) as model:
        expected = [await alone(model, prompt, max_new_tokens=5) for prompt in many]
        monkeypatch.setattr(Sampler, "uniform", property(fails_for_the_second))
        calls = (alone(model, prompt, max_new_tokens=5, seed=seed) for seed, prompt in enumerate(many, 1))
        first, second, third = await asyncio.gather(*calls, return_exceptions=True)
        assert (first, third) == (expected[0], expected[2])
        assert isinstance(second, RequestError)
        assert "ZeroDivisionError" in str(second)
        assert model.statistics().requests.failed == 1
        assert model.statistics().kv_blocks.used == 0


async def test_room_for_fewer_than_one_request_is_refused() -> None:
    from pipeline import ConfigError

    with pytest.raises(ConfigError, match="kv_tokens: need at least the 100 of context_tokens"):
        await Model.open(context_tokens=100, kv_tokens=99)
