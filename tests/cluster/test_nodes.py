"""A model cut over nodes says what it says on one device, bit for bit; the nodes are in one process here."""

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.cases import EVERYTHING, in_turn
from support.family_models import CASES
from support.local_sections import open_here

from pipeline import Model, Output
from pipeline.models.model_config import read_config

STEPS = 12 if EVERYTHING else 6
PROMPT = (*tiny_models.PROMPT, *range(3, 190, 7))
MOVES: dict[str, Any] = {"residency": False, "gpu_groups": 2, "max_tokens_per_pass": 29}
FEW_EXPERTS = {"gpu_experts": 3, "host_experts": 5}
WAYS: dict[str, dict[str, Any]] = {
    "2 nodes": {"count": 2, "device": "cpu"},
    "3 nodes, all moves": {"count": 3, "device": "cpu-copy", **MOVES},
}
FEW = ["gemma3", "gpt_oss", "qwen3_next", "llama_tied"]


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


async def answers(model: Model) -> list[Output]:
    """Of calls that share passes: greedy, drawn, with penalties, and with log-probabilities of the prompt."""
    ways: list[dict[str, Any]] = [
        {"logprobs": tiny_models.VOCABULARY_SIZE},
        {"temperature": 1.0, "seed": 7, "top_p": 0.9, "n": 2},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "prompt_logprobs": 3},
    ]
    asked = [
        model.generate(PROMPT[3 * at :], max_new_tokens=STEPS, ignore_eos=True, **way) for at, way in enumerate(ways)
    ]
    return [one for some in await asyncio.gather(*asked) for one in (some if isinstance(some, list) else [some])]


@functools.cache
def alone(folder: Path) -> list[Output]:
    async def run() -> list[Output]:
        async with Model.open(folder, device="cpu") as model:
            return await answers(model)

    return asyncio.run(run())


@pytest.mark.parametrize(("name", "way"), in_turn([*CASES, *tiny_models.VARIANTS] if EVERYTHING else FEW, [*WAYS]))
def test_bits_are_those_of_one_device(name: str, way: str, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.open_on_cluster.HOP_SECONDS", 0.0)  # layers that move are dealt in turn

    async def run() -> list[Output]:
        folder, settings = checkpoint(folders, name), WAYS[way]
        config = read_config(folder)
        count = min(settings["count"], config.layers - len(config.joined_layers))
        few = FEW_EXPERTS if config.expert_kinds and "residency" in settings else {}
        async with await open_here(folder, **{**settings, **few, "count": count}) as model:
            return await answers(model)

    assert asyncio.run(run()) == alone(checkpoint(folders, name))
