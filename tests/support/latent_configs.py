"""What config.json says of published models with latent attention: a part of `published_configs`."""

from typing import Any

from support.published_configs import FP8, Settings, nested, shape


def latent(model_type: str, sizes: tuple[int, ...], vocabulary: int, heads: int, **more: Any) -> Settings:
    """As DeepSeek's families spell them."""
    rope = {
        "type": "yarn",
        "factor": more.pop("factor"),
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    }
    dims = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    routing = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "norm_topk_prob": True}
    named = {"architectures": ["DeepseekV3ForCausalLM"], "rope_scaling": rope, "moe_intermediate_size": 2048}
    named = {"q_lora_rank": 1536, **dims, **routing, **named, **more}
    return shape(model_type, sizes, vocabulary, (heads, heads), **named)


DEEPSEEK = {"n_routed_experts": 256, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "factor": 40}
KIMI = {"n_routed_experts": 384, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "factor": 32}
KIMI |= {"routed_scaling_factor": 2.827, "num_experts_per_tok": 8}
GLM = {"n_routed_experts": 256, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "factor": 1}
GLM |= {"q_lora_rank": 2048, "qk_nope_head_dim": 192, "v_head_dim": 256, "index_topk_freq": 1}
KIMI_K2 = latent("kimi_k2", (7168, 18432, 61), 163840, 64, **KIMI)

V2 = {"scoring_func": "softmax", "norm_topk_prob": False, "num_experts_per_tok": 6, "n_shared_experts": 2, "factor": 40}
V2 |= {"architectures": ["DeepseekV2ForCausalLM"], "first_k_dense_replace": 1}
LITE = {"topk_method": "greedy", "n_routed_experts": 64, "moe_intermediate_size": 1408, "q_lora_rank": None}
OF_GROUPS = {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3}

LATENT: dict[str, tuple[Settings, float]] = {
    "DeepSeek-V2-Lite": (latent("deepseek_v2", (2048, 10944, 27), 102400, 16, **V2, **LITE), 15.71),
    "DeepSeek-V2": (
        latent(
            *("deepseek_v2", (5120, 12288, 60), 102400, 128),
            **{**V2, **OF_GROUPS, "n_routed_experts": 160, "moe_intermediate_size": 1536},
        ),
        235.74,
    ),
    "DeepSeek-V3": (
        latent("deepseek_v3", (7168, 18432, 61), 129280, 128, **DEEPSEEK, quantization_config=FP8),
        671.03,
    ),
    "DeepSeek-V3.2": (
        latent(
            *("deepseek_v32", (7168, 18432, 61), 129280, 128),
            **{**DEEPSEEK, "architectures": ["DeepseekV32ForCausalLM"], "index_topk": 2048, "index_n_heads": 64},
        ),
        671.88,
    ),
    "GLM-5": (
        latent(
            *("glm_moe_dsa", (6144, 12288, 78), 154880, 64),
            **{**GLM, "architectures": ["GlmMoeDsaForCausalLM"], "rope_scaling": None, "rope_theta": 1e6},
        ),
        744,
    ),
    "Kimi-K2": (KIMI_K2, 1026.5),
    "Kimi-K2.5": (
        nested("kimi_k25", "KimiK25ForConditionalGeneration", KIMI_K2, tie_word_embeddings=False),
        1026.5,
    ),
}
