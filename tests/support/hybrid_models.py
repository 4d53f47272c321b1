"""Tiny random models whose layers are gated delta nets, but for some of full attention: a part of `family_models`."""

import warnings
from typing import Any

from support.family_case import QWEN_TOWER, SHAPE, Case

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Qwen3_5Config, Qwen3_5TextConfig, Qwen3NextConfig

MIXERS = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
HYBRID: dict[str, Any] = {
    "head_dim": 12,
    "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 14,
    "linear_conv_kernel_dim": 4,
}

CASES: dict[str, Case] = {
    "qwen3_5": Case(
        lambda: Qwen3_5Config(
            text_config={**SHAPE, **HYBRID, "attention_bias": True},
            vision_config=QWEN_TOWER,
            tie_word_embeddings=False,
        ),
        {
            "text_config.layer_types": MIXERS,
            "text_config.rope_parameters.partial_rotary_factor": 1.0,
            "text_config.attention_bias": False,
            "text_config.rms_norm_eps": 0.1,
        },
        {"layer_types": None, "full_attention_interval": 2},
        deviation=0.1,
    ),
    "qwen3_5_text": Case(
        lambda: Qwen3_5TextConfig(**SHAPE, **{**HYBRID, "layer_types": MIXERS}, tie_word_embeddings=True),
        {"layer_types": ["linear_attention"] * 3 + ["full_attention"], "rope_parameters.rope_theta": 50.0},
        deviation=0.1,
    ),
    "qwen3_next": Case(
        lambda: Qwen3NextConfig(**SHAPE, **HYBRID, num_experts=4, mlp_only_layers=[0, 1, 2, 3]),
        {"rope_parameters.partial_rotary_factor": 1.0, "layer_types": MIXERS},
        {"layer_types": None, "full_attention_interval": 2},
        deviation=0.1,
    ),
}
