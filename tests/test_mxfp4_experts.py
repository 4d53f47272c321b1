"""gpt-oss whose experts are stored in MXFP4, as published: what transformers says that decodes them."""

import asyncio
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.family_models import CASES
from support.stacked_experts import GROUP, quantise

from pipeline import Model, Output

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Mxfp4Config

STEPS = 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mxfp4")
    config = CASES["gpt_oss"].config()
    config.hidden_size, config.intermediate_size = 2 * GROUP, 3 * GROUP
    model = tiny_models.randomised(config, seed=3)
    tiny_models.save_model(model, folder, shards=1)
    quantise(folder)
    return folder


def generated(folder: Path, **settings: Any) -> Output:
    async def main() -> Output:
        async with Model.open(folder, **settings) as model:
            every = tiny_models.VOCABULARY_SIZE
            return await model.generate(tiny_models.PROMPT, max_new_tokens=STEPS, ignore_eos=True, logprobs=every)

    return asyncio.run(main())


def test_experts_in_mxfp4_say_what_transformers_says_wherever_they_lie(checkpoint: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = tiny_models.transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
        )
    expected = tiny_models.greedy_anew(reference.eval(), tiny_models.PROMPT, STEPS)
    output = generated(checkpoint, device="cpu", dtype="float32")
    assert list(output.token_ids) == expected.token_ids
    assert output.logprobs is not None
    for step, logprobs in enumerate(output.logprobs):
        ours = torch.tensor([logprobs[token_id] for token_id in range(tiny_models.VOCABULARY_SIZE)])
        torch.testing.assert_close(ours, expected.logprobs[step], atol=1e-4, rtol=0)
    places = {"device": "cpu-copy", "dtype": "float32", "gpu_experts": 1, "host_experts": 2}
    assert generated(checkpoint, max_tokens_per_pass=5, **places) == output
    assert generated(checkpoint, cpu_experts=True, **places) == output
