"""Rotary frequencies that depend on the length: each token is that of its text alone, whatever was computed before."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models

from pipeline import Model, Output

STEPS = 10
DRAW = random.Random(3)
TEXT = [DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(100)]
LENGTHS = {"short": 9, "up to the last": 30, "into longer ones": 33, "from the last on": 40, "long": 75}
"""Of prompts, whose answers have 10 tokens, where the original context has 40."""
ROOM: dict[str, Any] = {"dtype": "float32", "context_tokens": 150, "kv_tokens": 1600, "max_tokens_per_pass": 61}


@pytest.fixture(scope="module", params=tiny_models.OF_ANY_LENGTH)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def expected(variant: Path) -> dict[str, tiny_models.Greedy]:
    """What transformers says of each length."""
    model = tiny_models.transformers.AutoModelForCausalLM.from_pretrained(variant, dtype=torch.float32).eval()
    return {name: tiny_models.greedy_anew(model, TEXT[:tokens], STEPS) for name, tokens in LENGTHS.items()}


async def ask(model: Model, tokens: int, **arguments: Any) -> Output:
    settings = {"max_new_tokens": STEPS, "ignore_eos": True, "logprobs": tiny_models.VOCABULARY_SIZE, **arguments}
    return await model.generate(TEXT[:tokens], **settings)


async def test_tokens_and_logprobs_equal_transformers_on_both_sides_of_the_original_context(
    variant: Path, expected: dict[str, tiny_models.Greedy]
) -> None:
    async with Model.open(variant, **ROOM) as model:
        outputs = {name: await ask(model, tokens) for name, tokens in LENGTHS.items()}
    for name, output in outputs.items():
        assert list(output.token_ids) == expected[name].token_ids, name
        assert output.logprobs is not None
        for step, logprobs in enumerate(output.logprobs):
            ours = torch.tensor([logprobs[token_id] for token_id in range(tiny_models.VOCABULARY_SIZE)])
            torch.testing.assert_close(ours, expected[name].logprobs[step], atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"batch_invariant": True, "policy": "stage3", "device": "cpu-copy"}], ids=str)
async def test_company_changes_no_bit(settings: dict[str, Any], variant: Path) -> None:
    """Some are within the original context while others leave it, and there is not room for all at once."""
    settings = {**ROOM, **settings}
    async with Model.open(variant, **settings) as model:
        alone = [await ask(model, tokens) for tokens in LENGTHS.values()]
    async with Model.open(variant, **{**settings, "kv_tokens": 200, "max_tokens_per_pass": 83}) as model:
        assert await asyncio.gather(*(ask(model, tokens) for tokens in LENGTHS.values())) == alone
        assert model.statistics().kv_blocks.used == 0


async def test_blocks_are_shared_only_where_they_are_rotated_alike(variant: Path) -> None:
    lengths = (75, 9, 33, 60)
    async with Model.open(variant, **ROOM) as model:
        alone = [await ask(model, tokens) for tokens in lengths]
        assert [await ask(model, tokens, cache_scope="a") for tokens in lengths] == alone
        hits = model.statistics().prefixes.hit_tokens
        assert await asyncio.gather(*(ask(model, tokens, cache_scope="a") for tokens in lengths)) == alone
        shared = 64 + 0 + 32 + 48 if "longrope" in variant.name else 32
        assert model.statistics().prefixes.hit_tokens - hits >= shared


async def test_samples_are_those_of_as_many_calls(variant: Path) -> None:
    arguments: dict[str, Any] = {"temperature": 1.0, "logprobs": 3}
    async with Model.open(variant, **ROOM) as model:
        expected = [await ask(model, 33, seed=5 + index, **arguments) for index in range(3)]
        assert await ask(model, 33, seed=5, n=3, **arguments) == expected
        assert len({output.token_ids for output in expected}) > 1


async def test_a_context_in_which_each_token_costs_a_whole_sequence_is_announced(
    variant: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for context_tokens in (40, 41):
        async with Model.open(variant, context_tokens=context_tokens):
            pass
        told = [record.message for record in caplog.records if "rope_scaling" in record.message]
        assert len(told) == (context_tokens == 41 and "dynamic" in variant.name)
    assert all("beyond 40 tokens" in one and "context_tokens=40" in one for one in told)
