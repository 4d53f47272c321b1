"""A tiny mixture of experts, and what it answers to several prompts at once."""

import asyncio
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from support import tiny_models

from pipeline import Model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Qwen3MoeConfig

LAYERS, EXPERTS, CHOSEN = 3, 7, 3
NEW_TOKENS = 9
Answer: TypeAlias = tuple[tuple[int, ...], Any]
"""The tokens, and the log-probabilities of the two that were most likely in the place of each."""


def save_mixture(folder: Path, *, dense_layers: Sequence[int] = ()) -> Path:
    """Write a Qwen3 MoE whose `LAYERS` layers have experts, but for these beside them; gives the folder."""
    config = Qwen3MoeConfig(
        vocab_size=tiny_models.VOCABULARY_SIZE,
        hidden_size=48,
        intermediate_size=104,
        moe_intermediate_size=36,
        num_hidden_layers=LAYERS + len(dense_layers),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        norm_topk_prob=True,
        mlp_only_layers=[*dense_layers],
        max_position_embeddings=256,
    )
    tiny_models.save_model(tiny_models.randomised(config, seed=4), folder, shards=2)
    return folder


async def answers_to(prompts: Sequence[list[int]], model: Model) -> list[Answer]:
    """What is answered to all of them at once."""
    calls = [model.generate(one, max_new_tokens=NEW_TOKENS, ignore_eos=True, logprobs=2) for one in prompts]
    return [(output.token_ids, output.logprobs) for output in await asyncio.gather(*calls)]


def said_by(folder: Path, prompts: Sequence[list[int]], **settings: Any) -> list[Answer]:
    """What a model of its own with these settings answers."""

    async def main() -> list[Answer]:
        async with Model.open(folder, **settings) as model:
            return await answers_to(prompts, model)

    return asyncio.run(main())


async def leave_at_steps(model: Model, prompt: list[int], distance: int) -> None:
    """Cancel a request in its first 120 turns of the event loop, so many apart, each time one that is new."""
    for steps in range(0, 120, distance):
        leaving = asyncio.ensure_future(model.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True))
        for _ in range(steps):
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
