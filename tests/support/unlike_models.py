"""Tiny random models whose layers keep different things between passes."""

import copy
from typing import Any

from support.family_case import SHAPE
from support.family_models import CASES
from support.gemma_models import PROPORTIONAL, Gemma4TextConfig

LAYERS = 6


def hybrid() -> Any:
    """Delta nets, and attention in every third layer."""
    config = CASES["qwen3_5_text"].config()
    config.num_hidden_layers = LAYERS
    config.layer_types = ["linear_attention", "linear_attention", "full_attention"] * 2
    return config


def windows() -> Any:
    """Blocks of layers that see all are twice as large."""
    return Gemma4TextConfig(
        **{**SHAPE, "num_hidden_layers": LAYERS, "head_dim": 10, "sliding_window": 6},
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        global_head_dim=64,
        hidden_size_per_layer_input=0,
        rope_parameters=copy.deepcopy(PROPORTIONAL),
    )


UNLIKE = {"hybrid": hybrid, "windows": windows}
