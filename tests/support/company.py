"""Requests whose every bit is compared: alone, and in company.

The ffn has more than 2,048 rows: from there on bf16 shows it when products are computed in other blocks of rows.
"""

import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from support.tiny_models import transformers

from pipeline import Model, Output

DTYPES = ("bfloat16", "float16", "float32")
DRAW = random.Random(4)
PROMPTS = [[DRAW.randrange(1, 250) for _ in range(count)] for count in (12, 1, 33, 70, 45, 100)]
ANSWERS: dict[tuple[Any, ...], list[Output]] = {}
ROOM: dict[str, Any] = {"context_tokens": 160, "kv_tokens": 1600, "max_tokens_per_pass": 96}


def save(folder: Path, *, window: int | None = None) -> None:
    shape: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": 128,
        "intermediate_size": 4096,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(2)
    config = transformers.LlamaConfig(**shape)
    if window is not None:
        config = transformers.MistralConfig(**shape, sliding_window=window)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.to(torch.bfloat16).save_pretrained(folder)


async def ask(model: Model, index: int, prompt: Sequence[int] | None = None, **arguments: Any) -> Output:
    """Every second request is greedy, every other draws with a seed of its own."""
    drawn = {"temperature": 0.0} if index % 2 else {"temperature": 0.9, "seed": index}
    wanted = {"max_new_tokens": 7, "ignore_eos": True, "logprobs": 5, **drawn, **arguments}
    return await model.generate(PROMPTS[index] if prompt is None else prompt, **wanted)


async def alone(folder: Path, **settings: Any) -> list[Output]:
    """The answers to all prompts, one after the other; computed once for each folder and its settings."""
    key = (folder, *sorted(settings.items()))
    if key not in ANSWERS:
        async with Model.open(folder, **ROOM, **settings) as model:
            ANSWERS[key] = [await ask(model, index) for index in range(len(PROMPTS))]
    return ANSWERS[key]
