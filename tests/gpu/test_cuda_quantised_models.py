"""Whole quantised models on a GPU say what they say on the CPU, whether their weights move or stay."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from support import quantised_models, tiny_models
from support.quantised_families import VOCABULARY_SIZE

from pipeline import Model

pytestmark = pytest.mark.cuda
SETTINGS: tuple[dict[str, Any], ...] = ({"gpu_groups": 2, "residency": False}, {})


async def answers(folder: Path, **settings: Any) -> tuple[list[tuple[int, ...]], torch.Tensor]:
    """The tokens of three requests that run at a time, and the log-probabilities [steps, V] of the longest."""
    prompts = [tiny_models.PROMPT[:count] for count in (3, 9, len(tiny_models.PROMPT))]
    asked: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True, "logprobs": VOCABULARY_SIZE}
    async with Model.open(folder, dtype="float32", **settings) as model:
        outputs = await asyncio.gather(*(model.generate(prompt, **asked) for prompt in prompts))
    logprobs = [[step[token_id] for token_id in sorted(step)] for step in outputs[-1].logprobs or ()]
    return [(*output.token_ids,) for output in outputs], torch.tensor(logprobs)


@pytest.mark.parametrize("name", quantised_models.FORMATS)
async def test_tokens_equal_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    quantised_models.save(quantised_models.FORMATS[name], "llama", tmp_path)
    token_ids, logprobs = await answers(tmp_path, device="cpu")
    for settings in SETTINGS:
        on_gpu, near = await answers(tmp_path, device="cuda", **settings)
        assert on_gpu == token_ids, settings
        torch.testing.assert_close(near, logprobs, atol=2e-3, rtol=0)
