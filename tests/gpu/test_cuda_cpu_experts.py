"""Experts that a GPU has not, computed by the CPU: the same tokens."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.expert_slots import all_slots_are_back
from support.written_models import write_model
from test_cuda_experts import MODELS, NEW, SHAPE

from pipeline import Model, Output

pytestmark = pytest.mark.cuda
PROMPTS = [[*range(3, 43)], [5, 9, 77, 34, 8, 8, 90], [*range(3, 90), 7]]


async def said(folder: Path, **settings: Any) -> tuple[list[Output], int]:
    """The answers, and how many experts the CPU has computed for them."""
    async with Model.open(folder, device="cuda", **settings) as model:
        outputs = await asyncio.gather(*(model.generate(prompt, **NEW) for prompt in PROMPTS))
        outputs += [await model.generate(PROMPTS[0], **NEW)]
        experts = model.statistics().experts
        assert experts is not None
        assert all_slots_are_back(model)
        return outputs, sum(experts.on_cpu.values())


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
async def test_the_cpu_says_what_the_gpu_says(name: str, tmp_path: Path) -> None:
    write_model(tmp_path, {"model_type": name, **SHAPE, **MODELS[name]})
    expected, _ = await said(tmp_path, dtype="float32")
    for chosen, slots in ((True, (1, 1)), (True, (4, 20)), ("auto", (4, 20))):
        settings = {"gpu_experts": slots[0], "host_experts": slots[1]}
        ours, on_cpu = await said(tmp_path, dtype="float32", cpu_experts=chosen, **settings)
        assert on_cpu > 0 or chosen == "auto"
        assert [one.token_ids for one in ours] == [one.token_ids for one in expected], (chosen, slots)
        for one, other in zip(ours, expected, strict=True):
            assert one.logprobs is not None
            assert other.logprobs is not None
            for step, theirs in zip(one.logprobs, other.logprobs, strict=True):
                assert max(abs(step[token] - theirs[token]) for token in theirs if token in step) < 2e-3
