"""DeepSeek-V3 in small: no bit depends on company, on pieces, on prefixes or on where latents and experts live."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.cases import in_turn
from support.family_models import CASES
from support.kv_places import settings_with_room

from pipeline import Model

SETTINGS: dict[str, Any] = {"context_tokens": 96, "kv_tokens": 480, "max_tokens_per_pass": 29, "max_requests": 5}
EXPERTS = {"gpu_experts": 2, "host_experts": 5}
DRAW = random.Random(8)
SHARED = [DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(48)]
PROMPTS = [*([*SHARED, *range(3, 3 + count)] for count in (1, 9, 20)), SHARED[:5], SHARED[40:]]


async def ask(model: Model, prompt: list[int]) -> tuple[Any, Any]:
    output = await model.generate(prompt, max_new_tokens=3, ignore_eos=True, logprobs=3, cache_scope="all")
    return output.token_ids, output.logprobs


@pytest.mark.usefixtures("nothing_was_there_before")
@pytest.mark.parametrize(("dtype", "batch_invariant"), in_turn([torch.float32, torch.bfloat16], [False, True]), ids=str)
async def test_no_bit_depends_on_company_prefixes_cancelled_ones_or_places(
    dtype: torch.dtype, batch_invariant: bool, tmp_path: Path
) -> None:
    config = CASES["deepseek_v3 with experts"].config()
    config.num_hidden_layers = 6
    written = tiny_models.randomised(config, seed=3, deviation=0.1).to(dtype)
    tiny_models.save_model(written, tmp_path / "model", shards=2)
    settings = {**SETTINGS, "batch_invariant": batch_invariant}
    expected = []
    async with Model.open(tmp_path / "model", device="cpu", **{**settings, "max_tokens_per_pass": 96}) as model:
        for prompt in PROMPTS:
            output = await model.generate(prompt, max_new_tokens=3, ignore_eos=True, logprobs=3)
            expected.append((output.token_ids, output.logprobs))
        layout = model.runtime.cache.memory.layouts[0]
        assert layout.cell_bytes == 4096
        assert layout.view(torch.zeros(layout.layer_bytes, dtype=torch.uint8)).memory.shape[1:] == (1, 16, 1, 12 + 14)
    room = settings_with_room(tmp_path / "model", tmp_path, 4, 4, device="cpu-copy", **settings, **EXPERTS)
    async with Model.open(tmp_path / "model", **room) as model:
        places = model.statistics().kv_blocks.places
        assert all(places[name].layers for name in ("device", "host", "disk"))
        for steps in (0, 90):
            running = [asyncio.create_task(ask(model, prompt)) for prompt in PROMPTS]
            gone = asyncio.create_task(ask(model, PROMPTS[2][::-1]))
            for _ in range(steps):
                await asyncio.sleep(0)
            gone.cancel()
            assert await asyncio.gather(*running) == expected
            await asyncio.gather(gone, return_exceptions=True)
        assert model.statistics().prefixes.hit_tokens >= 48
        assert model.statistics().kv_blocks.used == 0
