"""Rotary frequencies that depend on the length, and biases, on a GPU: the tokens of transformers, in company too."""

import asyncio
import random
from pathlib import Path

import pytest
from support import tiny_models

from pipeline import Model

pytestmark = pytest.mark.cuda
DRAW = random.Random(3)
TEXT = [DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(100)]
LENGTHS, STEPS = (9, 33, 40, 75), 10


@pytest.mark.parametrize("variant", [*tiny_models.OF_ANY_LENGTH, "llama_biases", "qwen3_biases"])
async def test_fp32_tokens_equal_transformers_alone_and_in_company(variant: str, tmp_path: Path) -> None:
    def reference() -> list[list[int]]:
        model = tiny_models.save_and_read(variant, tmp_path)
        return [tiny_models.greedy_anew(model, TEXT[:tokens], STEPS).token_ids for tokens in LENGTHS]

    async def ask(model: Model, tokens: int) -> list[int]:
        return list((await model.generate(TEXT[:tokens], max_new_tokens=STEPS, ignore_eos=True)).token_ids)

    expected = await asyncio.to_thread(reference)
    async with Model.open(tmp_path, device="cuda", dtype="float32", context_tokens=100, kv_tokens=800) as model:
        assert [await ask(model, tokens) for tokens in LENGTHS] == expected
        assert await asyncio.gather(*(ask(model, tokens) for tokens in LENGTHS)) == expected
