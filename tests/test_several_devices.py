"""A model over several devices says what it says on one, bit for bit, however its layers are dealt."""

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.cases import EVERYTHING, in_turn
from support.family_models import CASES

from pipeline import Model, Output
from pipeline.models.model_config import read_config

STEPS = 12 if EVERYTHING else 6
PROMPT = (*tiny_models.PROMPT, *range(3, 190, 7))
MOVES = {"residency": False, "gpu_groups": 2, "gpu_experts": 3, "host_experts": 5, "max_tokens_per_pass": 29}
WAYS: dict[str, dict[str, Any]] = {
    "2 cpu, all stays": {"devices": ["cpu"] * 2},
    "3 cpu-copy, all moves": {"devices": ["cpu-copy"] * 3, **MOVES},
    "2 cpu-copy, all moves": {"devices": ["cpu-copy"] * 2, **MOVES},
    "3 cpu, all moves": {"devices": ["cpu"] * 3, **MOVES},
}
FAMILIES = [*CASES, *tiny_models.VARIANTS]
FEW = ["gemma3", "gpt_oss", "qwen3_next", "glm_moe_dsa", "deepseek_v3 with experts", "llama_tied"]
"""With windows, experts, recurrent layers, layers that need the one before, latents, and one matrix for both ends."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family, made when it is asked for."""
    return tmp_path_factory.mktemp("families")


@functools.cache
def checkpoint(root: Path, name: str) -> Path:
    if name in CASES:
        case = CASES[name]
        model = tiny_models.randomised(case.config(), seed=sum(name.encode()), deviation=case.deviation)
        tiny_models.save_model(model, root / name, shards=3, stacked=case.stacked)
    else:
        tiny_models.save(name, root / name)
    return root / name


async def generated(folder: Path, **settings: Any) -> Output:
    async with Model.open(folder, **settings) as model:
        return await model.generate(PROMPT, max_new_tokens=STEPS, ignore_eos=True, logprobs=tiny_models.VOCABULARY_SIZE)


@functools.cache
def alone(folder: Path) -> Output:
    return asyncio.run(generated(folder, device="cpu"))


@pytest.mark.parametrize(("name", "way"), in_turn(FAMILIES if EVERYTHING else FEW, [*WAYS]))
def test_bits_are_those_of_one_device(name: str, way: str, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.generation.drawn_sections.HOP_SECONDS", 0.0)  # layers that move are dealt in turn
    folder, settings = checkpoint(folders, name), WAYS[way]
    model = read_config(folder)
    devices = settings["devices"][: model.layers - len(model.joined_layers)]
    assert asyncio.run(generated(folder, **{**settings, "devices": devices})) == alone(folder)
