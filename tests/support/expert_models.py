"""Tiny random models with experts: a part of `family_models`."""

import warnings
from typing import Any

from support.family_case import QWEN_TOWER, SHAPE, Case
from support.hybrid_models import HYBRID, MIXERS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import (
        MiniMaxM2Config,
        MixtralConfig,
        OlmoeConfig,
        Qwen2MoeConfig,
        Qwen3_5MoeConfig,
        Qwen3_5MoeTextConfig,
        Qwen3MoeConfig,
        Qwen3NextConfig,
    )

EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 3}
SIZES: dict[str, Any] = {**EXPERTS, "moe_intermediate_size": 28}
SHARED: dict[str, Any] = {**SIZES, "shared_expert_intermediate_size": 36}

CASES: dict[str, Case] = {
    "mixtral": Case(
        lambda: MixtralConfig(**SHAPE, num_local_experts=5, num_experts_per_tok=2, sliding_window=7),
        {"num_experts_per_tok": 3, "sliding_window": None, "rope_parameters.rope_theta": 50.0},
    ),
    "minimax_m2": Case(
        lambda: MiniMaxM2Config(
            **{**SHAPE, **EXPERTS, "intermediate_size": 28},
            head_dim=16,
            rope_parameters={"rope_theta": 300.0, "partial_rotary_factor": 0.5},
        ),
        {
            "num_experts_per_tok": 2,
            "rope_parameters.rope_theta": 90.0,
            "rope_parameters.partial_rotary_factor": 0.25,
            "hidden_act": "relu2",
        },
    ),
    "olmoe": Case(
        lambda: OlmoeConfig(**{**SHAPE, **EXPERTS}, norm_topk_prob=True, attention_bias=True),
        {"norm_topk_prob": False, "num_experts_per_tok": 2, "attention_bias": False},
    ),
    "qwen2_moe": Case(
        lambda: Qwen2MoeConfig(
            **{**SHAPE, **SHARED}, mlp_only_layers=[1], use_sliding_window=True, sliding_window=7, max_window_layers=3
        ),
        {
            "layer_types": ["full_attention"] * 4,
            "norm_topk_prob": True,
            "num_experts_per_tok": 2,
            "mlp_only_layers": [],
            "decoder_sparse_step": 2,
            "qkv_bias": False,
        },
        {"layer_types": None},
    ),
    "qwen3_moe": Case(
        lambda: Qwen3MoeConfig(
            **{**SHAPE, **SIZES},
            head_dim=10,
            norm_topk_prob=True,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=9,
            decoder_sparse_step=2,
        ),
        {
            "norm_topk_prob": False,
            "num_experts_per_tok": 1,
            "sliding_window": 6,
            "mlp_only_layers": [3],
            "decoder_sparse_step": 1,
            "attention_bias": False,
        },
    ),
    "qwen3_next with experts": Case(
        lambda: Qwen3NextConfig(**{**SHAPE, **SHARED, **HYBRID}, mlp_only_layers=[2]),
        {"norm_topk_prob": False, "num_experts_per_tok": 2, "mlp_only_layers": [], "layer_types": MIXERS},
        {"layer_types": None, "full_attention_interval": 2},
        deviation=0.1,
    ),
    "qwen3_5_moe": Case(
        lambda: Qwen3_5MoeConfig(
            text_config={**SHAPE, **SHARED, **HYBRID},
            vision_config=QWEN_TOWER,
            tie_word_embeddings=False,
        ),
        {"text_config.num_experts_per_tok": 2, "text_config.layer_types": MIXERS},
        {"layer_types": None, "full_attention_interval": 2},
        deviation=0.07,
        stacked=True,
    ),
    "qwen3_5_moe_text": Case(
        lambda: Qwen3_5MoeTextConfig(**{**SHAPE, **SHARED, **HYBRID}, tie_word_embeddings=True),
        {"num_experts_per_tok": 1, "rope_parameters.rope_theta": 50.0},
        deviation=0.07,
    ),
}
