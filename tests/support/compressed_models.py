"""A tiny random DeepSeek-V4, whose layers look at compressed entries: a part of `family_models`."""

import warnings
from typing import Any

from support.family_case import SHAPE, YARN, Case

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import DeepseekV4Config

SLIDING, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
ROPE: dict[str, Any] = {key: value for key, value in YARN.items() if "mscale" not in key and key != "truncate"}
SIZES: dict[str, Any] = {
    **{key: value for key, value in SHAPE.items() if key not in ("intermediate_size", "num_key_value_heads")},
    "head_dim": 20,
    "partial_rotary_factor": 0.4,
    "q_lora_rank": 22,
    "o_groups": 2,
    "o_lora_rank": 12,
    "sliding_window": 6,
    "compress_rates": {SPARSE: 4, HEAVY: 32},
    "index_topk": 3,
    "index_n_heads": 14,
    "index_head_dim": 16,
    "hc_mult": 3,
    "hc_sinkhorn_iters": 4,
    "moe_intermediate_size": 28,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "swiglu_limit": 2.0,
}
CASES: dict[str, Case] = {
    "deepseek_v4": Case(
        lambda: DeepseekV4Config(
            **SIZES,
            layer_types=[SLIDING, SPARSE, HEAVY, SPARSE],
            mlp_layer_types=["hash_moe", "hash_moe", "moe", "moe"],
            rope_theta=300.0,
            compress_rope_theta=5000.0,
            rope_parameters=dict(ROPE),
        ),
        {
            "layer_types": [SLIDING, SPARSE, SPARSE, HEAVY],
            "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
            f"compress_rates.{HEAVY}": 16,
            "sliding_window": 9,
            "index_topk": 5,
            "hc_sinkhorn_iters": 1,
            "hc_eps": 0.2,
            "rms_norm_eps": 0.5,
            "swiglu_limit": 1.0,
            "routed_scaling_factor": 1.0,
            "rope_parameters.main.rope_theta": 90.0,
            "rope_parameters.compress.rope_theta": 90.0,
            "rope_parameters.compress.factor": 1.5,
            "rope_parameters.compress.attention_factor": 1.5,
        },
        {
            "layer_types": None,
            "compress_ratios": [0, 4, 128, 4, 0],
            "compress_rates": None,
            "compress_rate_csa": 4,
            "compress_rate_hca": 32,
            "mlp_layer_types": None,
            "num_hash_layers": 2,
            "rope_parameters": None,
            "rope_theta": 300.0,
            "rope_scaling": {"type" if key == "rope_type" else key: value for key, value in ROPE.items()},
            "partial_rotary_factor": None,
            "qk_rope_head_dim": 8,
        },
        rope_is_older=False,
        deviation=0.1,
    ),
}
