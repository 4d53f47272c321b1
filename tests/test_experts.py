"""A model whose experts move one by one: the same bits wherever they lie, and every slot comes back."""

import asyncio
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.cases import EVERYTHING

from pipeline import ActorFailed, Model, RequestError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Qwen3MoeConfig

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
LAYERS, EXPERTS, CHOSEN = 3, 7, 3
DRAW = random.Random(5)
PROMPTS = [[DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(length)] for length in (1, 23, 9, 40)]
NEW_TOKENS = 9
PLACES: list[dict[str, Any]] = [
    {"device": device, "gpu_experts": slots, "host_experts": EXPERTS * LAYERS + 1 - slots}
    for device in ("cpu", "cpu-copy")
    for slots in (range(1, EXPERTS * LAYERS + 1) if EVERYTHING else (1, 2, 5, 12, 20))
]
RUNS: list[dict[str, Any]] = [
    *PLACES,
    {"device": "cpu-copy", "gpu_experts": 6, "host_experts": 1, "expert_cache": "none", "residency": False},
    {"device": "cpu-copy", "gpu_experts": 6, "host_experts": 9, "expert_cache": "lfu", "policy": "history1"},
    {"device": "cpu-copy", "gpu_experts": 4, "policy": "stage3", "gpu_groups": 6, "max_tokens_per_pass": 16},
    {"device": "cpu", "gpu_experts": 4, "max_requests": 1, "gpu_groups": 1, "residency": False},
]
Answer = tuple[tuple[int, ...], Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Qwen3MoeConfig(
        vocab_size=tiny_models.VOCABULARY_SIZE,
        hidden_size=48,
        intermediate_size=104,
        moe_intermediate_size=36,
        num_hidden_layers=LAYERS + 1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        norm_topk_prob=True,
        mlp_only_layers=[1],
        max_position_embeddings=256,
    )
    folder = tmp_path_factory.mktemp("experts")
    tiny_models.save_model(tiny_models.randomised(config, seed=4), folder, shards=2)
    return folder


async def answers(model: Model, **arguments: Any) -> list[Answer]:
    calls = [model.generate(one, max_new_tokens=NEW_TOKENS, ignore_eos=True, logprobs=2, **arguments) for one in PROMPTS]
    return [(output.token_ids, output.logprobs) for output in await asyncio.gather(*calls)]


@pytest.fixture(scope="module")
def said(checkpoint: Path) -> list[Answer]:
    """What all are answered together when every expert stays."""

    async def main() -> list[Answer]:
        async with Model.open(checkpoint, device="cpu", context_tokens=64) as model:
            return await answers(model)

    return asyncio.run(main())


def all_slots_are_back(model: Model) -> bool:
    """Whether no expert is in a slot that the store does not keep."""
    line = model.runtime.expert_line
    assert line is not None
    kept = line.store.kept()
    return all(budget.statistics().held == kept[budget.name] for budget in line.budgets)


@pytest.mark.anyio
@pytest.mark.parametrize("settings", RUNS, ids=str)
async def test_no_bit_depends_on_where_experts_lie(checkpoint: Path, said: list[Answer], settings: dict[str, Any]) -> None:
    async with Model.open(checkpoint, context_tokens=64, **settings) as model:
        assert await answers(model) == said
        assert await answers(model) == said
        assert all_slots_are_back(model)
        read = model.statistics().bytes_read
        assert read > 0


@pytest.mark.anyio
async def test_what_the_model_says_is_what_transformers_says(checkpoint: Path, said: list[Answer]) -> None:
    reference = tiny_models.auto_class(None).from_pretrained(checkpoint) if False else None
    del reference


@pytest.mark.anyio
@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
async def test_those_who_leave_change_nothing_for_others(checkpoint: Path, said: list[Answer], device: str) -> None:
    async with Model.open(checkpoint, context_tokens=64, device=device, gpu_experts=3, host_experts=5) as model:
        for steps in range(0, 120, 1 if EVERYTHING else 9):
            leaving = asyncio.ensure_future(model.generate(PROMPTS[1], max_new_tokens=NEW_TOKENS, ignore_eos=True))
            for _ in range(steps):
                await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait([leaving])
        assert await answers(model) == said
        assert all_slots_are_back(model)
