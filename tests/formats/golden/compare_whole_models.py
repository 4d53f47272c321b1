"""Compares whole quantised models with what transformers makes of the same folders, decoded by the formats' libraries.

    python tests/formats/golden/compare_whole_models.py

Needs compressed-tensors 0.20.1, bitsandbytes 0.50.2 and accelerate 1.15 beside transformers 5.24. AWQ and GPTQ are not
compared here: their loaders need a GPU or kernels. Nor is FP8 whose blocks do not divide the matrix, which transformers
decodes wrongly (findings/fp8_blocks_of_transformers.sh).
"""

import asyncio
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # support
from support import quantised_models, tiny_models
from support.quantised_families import DENSE, VOCABULARY_SIZE
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from pipeline import Model

STEPS, MOST_APART = 32, 1e-4
SIZES = {"intermediate_size": 256}


def of_transformers(config: Any, folder: Path) -> PreTrainedModel:
    """The model with all weights decoded, in fp32."""
    settings = {}
    if config["quant_method"] == "compressed-tensors":
        settings["quantization_config"] = CompressedTensorsConfig(**config, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)
    return (model.dequantize().float() if config["quant_method"] == "bitsandbytes" else model).eval()


async def apart(config: Any, folder: Path) -> float:
    """The largest difference of a log-probability; infinite where a token differs."""
    expected = tiny_models.greedy(of_transformers(config, folder), tiny_models.PROMPT, STEPS)
    size = VOCABULARY_SIZE
    async with Model.open(folder, device="cpu") as model:
        ours = await model.generate(tiny_models.PROMPT, max_new_tokens=STEPS, ignore_eos=True, logprobs=size)
    if [*ours.token_ids] != expected.token_ids or ours.logprobs is None:
        return float("inf")
    return max(
        (torch.tensor([said[token_id] for token_id in range(size)]) - step).abs().max().item()
        for said, step in zip(ours.logprobs, expected.logprobs, strict=True)
    )


def main() -> int:
    """Print a line for each format and family; 1 where one is too far apart."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    worst = 0.0
    for name, quantised in quantised_models.FORMATS.items():
        method = quantised.config["quant_method"]
        if method not in ("compressed-tensors", "bitsandbytes") and name != "fp8 blocks":
            continue
        for family in DENSE:
            with tempfile.TemporaryDirectory() as folder:
                quantised_models.save(quantised, family, Path(folder), **SIZES)
                found = asyncio.run(apart(quantised.config, Path(folder)))
                worst = max(worst, found)
                print(f"{name:34} {family:12} {found:.1e}")
    return int(worst > MOST_APART)


if __name__ == "__main__":
    sys.exit(main())
