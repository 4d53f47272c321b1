"""What config.json says of published models with experts: a part of the `published_configs`."""

from typing import Any

from support.published_configs import FP8, GEMMA_4_ROPE, Settings, gemma, nested, qwen, shape

MIXTRAL = {"num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6, "router_jitter_noise": 0.0}


def experts(count: int, chosen: int, size: int, shared: int | None = None, **more: Any) -> Settings:
    """As Qwen's families spell them."""
    sizes = {"num_experts": count, "num_experts_per_tok": chosen, "moe_intermediate_size": size}
    return sizes | ({"shared_expert_intermediate_size": shared} if shared else {}) | more


def qwen3_5_moe(hidden: int, layers: int, heads: int, value_heads: int, some: Settings, **more: Any) -> Settings:
    linear = {"linear_num_value_heads": value_heads, "linear_num_key_heads": 16, "full_attention_interval": 4}
    text = shape("qwen3_5_moe_text", (hidden, 0, layers), 248320, (heads, 2, 256), **linear, **some)
    del text["intermediate_size"]  # no layer has a feed-forward of its own
    return nested("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", text, **more)


def gpt_oss(layers: int, experts: int) -> Settings:
    rope = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    return shape(
        "gpt_oss",
        (2880, 2880, layers),
        201088,
        (64, 8, 64),
        num_local_experts=experts,
        num_experts_per_tok=4,
        swiglu_limit=7.0,
        attention_bias=True,
        rope_theta=150000,
        rope_scaling={**rope, "original_max_position_embeddings": 4096},
        layer_types=["sliding_attention", "full_attention"] * (layers // 2),
        quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
    )


DEEPSEEK_V4_FLASH: Settings = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "expert_dtype": "fp4",
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 512,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 512,
    "max_position_embeddings": 1048576,
    "model_type": "deepseek_v4",
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 43,
    "num_hash_layers": 3,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "q_lora_rank": 1024,
    "qk_rope_head_dim": 64,
    "quantization_config": {**FP8, "scale_fmt": "ue8m0"},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "vocab_size": 129280,
    "compress_rope_theta": 160000,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
}
WITH_EXPERTS: dict[str, tuple[Settings, float]] = {
    "Mixtral-8x7B": (shape("mixtral", (4096, 14336, 32), 32000, (32, 8), sliding_window=None, **MIXTRAL), 46.7),
    "Mixtral-8x22B": (shape("mixtral", (6144, 16384, 56), 32768, (48, 8), **MIXTRAL), 140.63),
    "OLMoE-1B-7B": (shape("olmoe", (2048, 1024, 16), 50304, (16, 16), num_experts=64, clip_qkv=None), 6.92),
    "Qwen1.5-MoE-A2.7B": (qwen("qwen2_moe", (2048, 5632, 24), (16, 16), **experts(60, 4, 1408, 5632)), 14.3),
    "Qwen2-57B-A14B": (qwen("qwen2_moe", (3584, 18944, 28), (28, 4), **experts(64, 8, 2560, 20480)), 57.4),
    "Qwen3-30B-A3B": (
        qwen("qwen3_moe", (2048, 6144, 48), (32, 4, 128), mlp_only_layers=[], **experts(128, 8, 768)),
        30.53,
    ),
    "Qwen3-235B-A22B-FP8": (
        qwen("qwen3_moe", (4096, 12288, 94), (64, 4, 128), **experts(128, 8, 1536, quantization_config=FP8)),
        235.09,
    ),
    "Qwen3-Next-80B-A3B": (
        shape("qwen3_next", (2048, 5120, 48), 151936, (16, 2, 256), mlp_only_layers=[], **experts(512, 10, 512, 512)),
        79.67,
    ),
    "Qwen3.5-35B-A3B": (qwen3_5_moe(2048, 40, 16, 32, experts(256, 8, 512, 512)), 34.66),
    "Qwen3.5-122B-A10B": (qwen3_5_moe(3072, 48, 32, 64, experts(256, 8, 1024, 1024)), 122.1),
    "Qwen3.5-397B-A17B": (qwen3_5_moe(4096, 60, 32, 64, experts(512, 10, 1024, 1024)), 396.3),
    "gemma-4-26B-A4B": (
        nested(
            "gemma4",
            "Gemma4ForConditionalGeneration",
            gemma(
                "gemma4_text",
                (2816, 2112, 30),
                262144,
                (16, 8, 256),
                attention_k_eq_v=True,
                global_head_dim=512,
                num_global_key_value_heads=2,
                hidden_size_per_layer_input=0,
                enable_moe_block=True,
                num_experts=128,
                top_k_experts=8,
                moe_intermediate_size=704,
                rope_parameters=GEMMA_4_ROPE,
            ),
        ),
        25.2,
    ),
    "GLM-4.5": (
        shape(
            "glm4_moe",
            (5120, 12288, 92),
            151552,
            (96, 8, 128),
            attention_bias=True,
            use_qk_norm=True,
            first_k_dense_replace=3,
            n_routed_experts=160,
            num_experts_per_tok=8,
            moe_intermediate_size=1536,
            routed_scaling_factor=2.5,
        ),
        352.8,
    ),
    "GLM-4.5-Air": (
        shape("glm4_moe", (4096, 10944, 46), 151552, (96, 8, 128), attention_bias=True, n_routed_experts=128),
        106.85,
    ),
    "MiniMax-M2": (
        shape(
            "minimax_m2",
            (3072, 1536, 62),
            200064,
            (48, 8, 128),
            num_local_experts=256,
            num_experts_per_tok=8,
            rotary_dim=64,
            rope_theta=5000000,
            quantization_config={**FP8, "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]},
        ),
        228.7,
    ),
    "DeepSeek-V4-Flash": (DEEPSEEK_V4_FLASH, 284.0),
    "gpt-oss-20b": (gpt_oss(24, 32), 20.91),
    "gpt-oss-120b": (gpt_oss(36, 128), 116.83),
}
