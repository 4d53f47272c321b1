"""Several sections on GPUs say what one does, bit for bit, and wait for each other on the device alone.

With one GPU it stands several times: each section has lanes, memory and budgets of its own, as on GPUs of their own.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.family_checkpoints import save_family
from support.fitting_settings import fitting

from pipeline import Model, Output
from pipeline.devices.cuda_lane import CudaLane
from pipeline.generation.section import COMPUTE
from pipeline.models import decoder
from pipeline.models.model_config import read_config

pytestmark = pytest.mark.cuda
STEPS = 12
PROMPT = (*tiny_models.PROMPT, *range(3, 190, 7))
STAYS: dict[str, Any] = {"max_tokens_per_pass": 64}
MOVES: dict[str, Any] = {**STAYS, "residency": False, "gpu_groups": 2, "gpu_experts": 3, "host_experts": 5}
FAMILIES = ["gemma3", "gpt_oss", "qwen3_next", "deepseek_v3 with experts", "glm4", "llama_gqa_llama3", "mistral_window"]


def gpus(count: int) -> list[str]:
    """As many as there are, in turn."""
    return [f"cuda:{index % torch.cuda.device_count()}" for index in range(count)]


async def asked(model: Model) -> list[Output]:
    prompts = (PROMPT, PROMPT[:7], PROMPT[5:40])
    calls = [model.generate(prompt, max_new_tokens=STEPS, ignore_eos=True, logprobs=5) for prompt in prompts]
    return list(await asyncio.gather(*calls))


async def answers(folder: Path, **settings: Any) -> list[Output]:
    async with Model.open(folder, **settings) as model:
        return await asked(model)


@pytest.mark.parametrize("name", FAMILIES)
async def test_bits_are_those_of_one_gpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.generation.drawn_sections.HOP_SECONDS", 0.0)
    await asyncio.to_thread(save_family, name, tmp_path)
    most = read_config(tmp_path).layers
    expected = await answers(tmp_path, device="cuda", **STAYS)
    for devices, settings in ((gpus(2), STAYS), (gpus(2), MOVES), (gpus(min(3, most)), MOVES)):
        assert await answers(tmp_path, devices=devices, **fitting(tmp_path, settings)) == expected, (devices, settings)


async def test_a_section_waits_for_another_ones_events_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream waits for an event of the other section's stream that has not come when the host is through.

    Each half of a layer takes a millisecond or so, so that the host is through long before.
    """
    await asyncio.to_thread(tiny_models.save, "llama_gqa_llama3", tmp_path, layers=8)
    expected = await answers(tmp_path, device="cuda", **STAYS)
    pairs: list[tuple[object, object]] = []
    come_behind, ffn_half = CudaLane._come_behind, decoder.ffn_half

    def watched(self: CudaLane, earlier: Any) -> None:
        if not earlier.done():
            pairs.append((self, earlier.lane))
        come_behind(self, earlier)

    def long_half(*arguments: Any) -> torch.Tensor:
        torch.cuda._sleep(2_000_000)
        return ffn_half(*arguments)

    monkeypatch.setattr(decoder, "ffn_half", long_half)
    async with Model.open(tmp_path, devices=gpus(2), **STAYS) as model:
        lanes = [one.device._lanes[COMPUTE] for one in model.runtime.sections]  # type: ignore[attr-defined]
        monkeypatch.setattr(CudaLane, "_come_behind", watched)
        assert await asked(model) == expected
    across = [pair for pair in pairs if pair == (lanes[1], lanes[0])]
    assert len(across) >= STEPS // 2, "most passes find the other section still at work"
