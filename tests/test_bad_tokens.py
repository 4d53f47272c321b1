"""A request whose numbers or tokens are bad ends alone, and says so; the others get the same tokens."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models

from pipeline import Model, RequestError

SETTINGS: dict[str, Any] = {"dtype": "float32", "context_tokens": 64, "kv_tokens": 192}
DRAW = random.Random(6)
PROMPTS = [[DRAW.randrange(3, 200) for _ in range(count)] for count in (20, 33, 5)]
BAD_ID = 250


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a token whose embedding is damaged."""
    from safetensors.torch import load_file, save_file

    folder: Path = tmp_path_factory.mktemp("checkpoint")
    tiny_models.save("llama_gqa_llama3", folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][BAD_ID] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


async def outcomes(model: Model, prompts: list[list[int]], **arguments: Any) -> list[Any]:
    calls = (model.generate(prompt, max_new_tokens=6, ignore_eos=True, **arguments) for prompt in prompts)
    return [getattr(one, "token_ids", one) for one in await asyncio.gather(*calls, return_exceptions=True)]


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "sampled"])
async def test_not_a_number_ends_one_request_and_stays_in_its_blocks(checkpoint: Path, sampled: dict[str, Any]) -> None:
    """The blocks that it leaves hold NaN, and go to the requests that come next."""
    async with Model.open(checkpoint, **SETTINGS) as model:
        expected = await outcomes(model, PROMPTS, **sampled)
        bad = [*PROMPTS[1][:17], BAD_ID, 5]
        for _ in range(2):
            first, failed, second = await outcomes(model, [PROMPTS[0], bad, PROMPTS[2]], **sampled)
            assert [first, second] == [expected[0], expected[2]]
            assert isinstance(failed, RequestError)
            assert "need finite logits; have nan" in str(failed)
            assert await outcomes(model, PROMPTS, **sampled) == expected
        assert model.statistics().requests.failed == 2
        assert model.statistics().kv_blocks.used == 0
