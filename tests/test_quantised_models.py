"""Whole models of every format against transformers with the decoded weights, and against themselves."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support import quantised_models, tiny_models
from support.cases import EVERYTHING, in_turn
from support.quantised_families import VOCABULARY_SIZE
from support.safetensors_files import unpad

from pipeline import Model, Output

STEPS = 32 if EVERYTHING else 8


async def greedy(folder: Path, steps: int = STEPS, **settings: object) -> Output:
    async with Model.open(folder, **settings) as model:
        return await model.generate(tiny_models.PROMPT, max_new_tokens=steps, ignore_eos=True, logprobs=VOCABULARY_SIZE)


LATENT = [(name, "deepseek_v3") for name in ("fp8 blocks", "ct int4")]
EXPERTS = [("fp8 blocks", "qwen2_moe"), ("awq", "qwen3_moe"), ("ct int4", "qwen3_moe"), ("gptq", "mixtral")]


@pytest.mark.parametrize(
    ("name", "family"), [*in_turn([*quantised_models.FORMATS], ["llama", "qwen2_tied"]), *LATENT, *EXPERTS]
)
async def test_tokens_and_logprobs_equal_transformers_with_the_decoded_weights(
    name: str, family: str, tmp_path: Path
) -> None:
    reference = quantised_models.save(quantised_models.FORMATS[name], family, tmp_path)
    expected = await asyncio.to_thread(tiny_models.greedy, reference, tiny_models.PROMPT, STEPS)
    output = await greedy(tmp_path, device="cpu")
    assert list(output.token_ids) == expected.token_ids
    assert output.logprobs is not None
    for step, logprobs in enumerate(output.logprobs):
        ours = torch.tensor([logprobs[token_id] for token_id in range(VOCABULARY_SIZE)])
        torch.testing.assert_close(ours, expected.logprobs[step], atol=1e-4, rtol=0)
    if (name, family) in EXPERTS:  # which a device without them leaves to the CPU
        places = {"device": "cpu-copy", "gpu_experts": 1, "host_experts": 3}
        assert await greedy(tmp_path, **places, cpu_experts=True) == output


async def test_the_first_line_says_which_formats_there_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Statistics count the stored bytes, and say what they stand for."""
    quantised_models.save(quantised_models.FORMATS["ct w8a8"], "llama", tmp_path)
    async with Model.open(tmp_path, device="cpu") as model:
        layers, head, norms = 3 * 64 * (64 * 2 + 32 * 2 + 160 * 3), 64 * VOCABULARY_SIZE, (3 * 2 + 1) * 64
        scales = 3 * (64 * 2 + 32 * 2 + 160 * 2 + 64)
        weights = model.statistics().weights
        assert (weights.stored_bytes, weights.computed_bytes) == (
            layers + 4 * (scales + head + norms),
            4 * (layers + head),
        )
        assert model.runtime.describe()["weights"] == {
            "compressed-tensors int8 in bytes, one scale a row": 21,
            "not quantised": 2,
        }
        assert caplog.messages[0] == (
            f"{tmp_path}: weights: 21 matrices compressed-tensors int8 in bytes, one scale a row; 2 matrices not "
            "quantised; activations are not quantised, where int8 is meant"
        )


MOST_DIFFERENT = (
    "ct int4 asymmetric",
    "ct int8 rows, head and embedding",  # the table stays where there are two places
    "gptq 8 bits ordered",
    "gptq, head",
    "fp8 blocks, head",
    "nf4 nested",
)
SETTINGS: tuple[dict[str, object], ...] = (
    {"gpu_groups": 1},
    {"gpu_groups": 3, "device": "cpu-copy", "host_groups": 2, "residency": False},
    {"gpu_groups": 5, "device": "cpu-copy", "policy": "stage3", "queues": {"disk_reader": 3, "gpu_uploader": 2}},
    {"residency": True, "batch_invariant": True},
)


@pytest.mark.parametrize("name", quantised_models.FORMATS if EVERYTHING else MOST_DIFFERENT)
async def test_no_bit_depends_on_settings_company_or_addresses(name: str, tmp_path: Path) -> None:
    quantised_models.save(quantised_models.FORMATS[name], "llama", tmp_path)
    prompts = [tiny_models.PROMPT, tiny_models.PROMPT[:1], tiny_models.PROMPT[3:] * 4]

    async def ask(model: Model, prompt: Sequence[int]) -> Output:
        return await model.generate(prompt, max_new_tokens=4, ignore_eos=True, logprobs=5)

    async with Model.open(tmp_path, device="cpu") as model:
        expected = [await ask(model, prompt) for prompt in prompts]
    unpad(tmp_path / "model.safetensors")
    for settings in SETTINGS:
        async with Model.open(tmp_path, **{"device": "cpu", **settings}) as model:
            assert await asyncio.gather(*(ask(model, prompt) for prompt in prompts)) == expected, settings
