"""A tiny model whose layers have experts, all but one of them."""

import warnings
from pathlib import Path
from typing import Any

from support import tiny_models

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Qwen3MoeConfig

LAYERS, EXPERTS, CHOSEN = (0, 2, 3), 7, 2


def save_experts(folder: Path) -> Path:
    """Save it."""
    sizes: dict[str, Any] = {
        "vocab_size": tiny_models.VOCABULARY_SIZE,
        "hidden_size": 48,
        "intermediate_size": 104,
        "moe_intermediate_size": 36,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
        "max_position_embeddings": 256,
    }
    tiny_models.save_model(tiny_models.randomised(Qwen3MoeConfig(**sizes), seed=4), folder, shards=1)
    return folder
