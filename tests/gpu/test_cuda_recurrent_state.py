"""Recurrent state on a real GPU, shared, cut, moved and computed anew: the same bits as one request at a time."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.family_models import CASES
from support.kv_places import settings_with_room

from pipeline import Model
from pipeline.engine import plan as plan_module
from pipeline.models import decoder

pytestmark = pytest.mark.cuda
DRAW = random.Random(7)
SYSTEM = [DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(150)]
PROMPTS = [
    [*SYSTEM[:shared], *(DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(own))]
    for shared, own in ((150, 0), (33, 190), (150, 9), (0, 5), (140, 40))
]
SETTINGS: dict[str, Any] = {
    "device": "cuda",
    "context_tokens": 256,
    "kv_tokens": 2560,
    "max_requests": 8,
    "batch_invariant": True,
    "share_prefixes": True,
}
RUNS: dict[str, dict[str, Any]] = {
    "all stays": {},
    "cut": {"max_tokens_per_pass": 50, "gpu_groups": 1, "residency": False, "policy": "stage2"},
    "moved": {"max_tokens_per_pass": 100},
}
Bits = list[tuple[Any, Any]]


@pytest.fixture
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("hybrid")
    tiny_models.save_model(tiny_models.randomised(CASES["qwen3_5_text"].config(), seed=3), folder, shards=1)
    return folder


async def samples(model: Model, prompt: list[int], n: int, seed: int = 5) -> Bits:
    sampled = {"n": n, "seed": seed, "temperature": 1.0}
    outputs = await model.generate(prompt, max_new_tokens=18, ignore_eos=True, logprobs=2, **sampled)
    return [(output.token_ids, output.logprobs) for output in outputs]


async def test_no_bit_changes(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "resident_bytes", lambda: 0)
    ffn_half, left = decoder.ffn_half, [1]

    def failing(*arguments: Any) -> Any:
        if left and left.pop() == 2:
            raise OSError("once")
        return ffn_half(*arguments)

    async with Model.open(checkpoint, **{**SETTINGS, "share_prefixes": False}) as model:
        alone = [[(await samples(model, prompt, 1, seed))[0] for seed in (5, 6)] for prompt in PROMPTS]
    monkeypatch.setattr(decoder, "ffn_half", failing)
    for run, changes in RUNS.items():
        settings = {**SETTINGS, **changes}
        if run == "moved":
            settings = settings_with_room(checkpoint, tmp_path, 2, 2, **settings)
        async with Model.open(checkpoint, **settings) as model:
            assert bool(model.runtime.cache.memory.placement.disk) == (run == "moved")
            assert [await samples(model, prompt, 1) for prompt in PROMPTS] == [pair[:1] for pair in alone]
            assert await asyncio.gather(*(samples(model, prompt, 2) for prompt in PROMPTS)) == alone
            states = model.statistics().recurrent_state
            assert states is not None
            assert states.hits > len(PROMPTS)
            left[:] = [2] + [1] * 40
            assert await asyncio.gather(*(samples(model, prompt, 2) for prompt in PROMPTS)) == alone
            assert model.statistics().requests.failed == model.statistics().kv_blocks.used == 0
