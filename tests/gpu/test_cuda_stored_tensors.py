"""Tensors in dtypes of their own at odd addresses, on a GPU: what transformers makes of them. Needs a GPU."""

import asyncio
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import tiny_models
from support.safetensors_files import in_every_dtype, unpad

from pipeline import Model

pytestmark = pytest.mark.cuda
STEPS = 12


@pytest.mark.filterwarnings("ignore")
async def test_tokens_are_those_of_transformers_in_every_dtype_at_odd_addresses(tmp_path: Path) -> None:
    def reference() -> list[int]:
        tiny_models.save("llama_gqa_llama3", tmp_path)
        file = tmp_path / "model.safetensors"
        tensors = load_file(file)
        in_every_dtype(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
        unpad(file)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        return tiny_models.greedy(model, tiny_models.PROMPT, STEPS).token_ids

    expected = await asyncio.to_thread(reference)
    async with Model.open(tmp_path, device="cuda", residency=False, checksums=True) as model:
        output = await model.generate(tiny_models.PROMPT, max_new_tokens=STEPS, ignore_eos=True)
    assert list(output.token_ids) == expected
