"""Tiny random models with latent attention: a part of `family_models`."""

import warnings
from typing import Any

from support.family_case import PIXTRAL, SHAPE, YARN, Case

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import (
        DeepseekV2Config,
        DeepseekV3Config,
        DeepseekV32Config,
        Glm4MoeLiteConfig,
        GlmMoeDsaConfig,
        Mistral3Config,
    )

LATENT: dict[str, Any] = {
    "kv_lora_rank": 14,
    "q_lora_rank": 22,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 12,
    "v_head_dim": 9,
    "first_k_dense_replace": 4,
    "rope_parameters": dict(YARN),
}
INDEXED: dict[str, Any] = {"index_topk": 11, "index_n_heads": 14, "index_head_dim": 16}
"""So many heads that a score is hardly ever 0, for which it would be open what is chosen."""
GROUPED: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 28,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
}
CASES: dict[str, Case] = {
    "deepseek_v3": Case(
        lambda: DeepseekV3Config(**{**SHAPE, "num_key_value_heads": 4}, **LATENT, attention_bias=True),
        {
            "attention_bias": False,
            "rope_interleave": False,
            "rms_norm_eps": 0.5,
            **{f"rope_parameters.{key}": 1.5 for key in ("rope_theta", "factor", "beta_fast", "beta_slow", "mscale")},
            "rope_parameters.mscale_all_dim": 1.5,
            "rope_parameters.original_max_position_embeddings": 12,
        },
    ),
    "deepseek_v3 with experts": Case(
        lambda: DeepseekV3Config(**{**SHAPE, "num_key_value_heads": 4}, **{**LATENT, **GROUPED}),
        {
            "first_k_dense_replace": 2,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
        },
    ),
    "glm_moe_dsa": Case(
        lambda: GlmMoeDsaConfig(
            **{**SHAPE, "num_key_value_heads": 4},
            **{**LATENT, **GROUPED, "n_group": 1, "topk_group": 1},
            **INDEXED,
            indexer_types=["full", "shared", "full", "shared"],
        ),
        {
            "index_topk": 20,
            "indexer_types": ["full", "shared", "shared", "shared"],
            "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
            "rope_parameters.mscale_all_dim": 1.5,
        },
        {
            "indexer_types": None,
            "index_topk_freq": 2,
            "index_skip_topk_offset": 1,
            "mlp_layer_types": None,
            "layer_types": None,
        },
    ),
    "deepseek_v32": Case(
        lambda: DeepseekV32Config(
            **{**SHAPE, "num_key_value_heads": 4}, **LATENT, **INDEXED, mlp_layer_types=["dense"] * 4
        ),
        {"index_topk": 20, "rope_parameters.mscale_all_dim": 1.5},
        {"mlp_layer_types": None, "layer_types": None},
    ),
    "deepseek_v3 without a latent of queries": Case(
        lambda: DeepseekV3Config(**{**SHAPE, "num_key_value_heads": 4}, **{**LATENT, "q_lora_rank": None}),
        {"rope_parameters": {"rope_type": "default", "rope_theta": 90.0}},
    ),
    "deepseek_v2": Case(
        lambda: DeepseekV2Config(
            **{**SHAPE, "num_key_value_heads": 4}, **{**LATENT, **GROUPED}, topk_method="group_limited_greedy"
        ),
        {"topk_method": "greedy", "topk_group": 1, "routed_scaling_factor": 2.0, "first_k_dense_replace": 2},
    ),
    "mistral4": Case(  # which transformers knows inside a model that sees alone
        lambda: Mistral3Config(
            text_config={
                **SHAPE,
                **LATENT,
                **GROUPED,
                "model_type": "mistral4",
                "num_key_value_heads": 4,
                "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.7},
            },
            vision_config=PIXTRAL,
            tie_word_embeddings=False,
        ),
        {
            "text_config.rope_parameters.llama_4_scaling_beta": 0.2,
            "text_config.rope_parameters.mscale_all_dim": 1.5,
            "text_config.topk_group": 1,
            "text_config.norm_topk_prob": False,
        },
    ),
    "glm4_moe_lite": Case(
        lambda: Glm4MoeLiteConfig(
            **{**SHAPE, "num_key_value_heads": 4},
            **{**LATENT, **GROUPED, "n_group": 1, "topk_group": 1, "rope_parameters": {"rope_theta": 300.0}},
        ),
        {"routed_scaling_factor": 1.0, "mlp_layer_types": ["dense", "dense", "sparse", "sparse"]},
        {"mlp_layer_types": None},
    ),
}
