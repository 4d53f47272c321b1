"""Prompts of which all tokens are scored, and how they are asked for."""

from typing import Any

from pipeline import Model, Output

PROMPTS = [[3 + (one * one * 7 + one * length) % 250 for one in range(length)] for length in (97, 2, 33, 1, 64, 45)]
MOST = (20, 0, 3, 5, 20, 1)
"""Of each, how many likely tokens are asked for."""
ROOM: dict[str, Any] = {"dtype": "float32", "context_tokens": 160, "kv_tokens": 1600, "max_tokens_per_pass": 300}


async def ask(model: Model, index: int, **arguments: Any) -> Output:
    """Two tokens behind one of the prompts."""
    wanted = {"max_new_tokens": 2, "ignore_eos": True, "prompt_logprobs": MOST[index], **arguments}
    return await model.generate(PROMPTS[index], **wanted)
