"""The `config.json` of models that people run, for checkpoints of a real shape."""

from collections.abc import Mapping

Settings = dict[str, object]

LLAMA_3 = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": 128256}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_3_1 = {**LLAMA_3, "max_position_embeddings": 131072, "rope_scaling": LLAMA_3_ROPE}
LLAMA_3_2 = {**LLAMA_3_1, "rope_scaling": {**LLAMA_3_ROPE, "factor": 32.0}, "tie_word_embeddings": True}
QWEN_2_5 = {
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "use_sliding_window": False,
}
QWEN_2_5_SMALL = {**QWEN_2_5, "vocab_size": 151936, "max_position_embeddings": 32768, "tie_word_embeddings": True}
QWEN_3 = {**QWEN_2_5, "model_type": "qwen3", "vocab_size": 151936, "max_position_embeddings": 40960}
LLAMA_2 = {
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
MISTRAL = {**LLAMA_2, "model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": 4096}

MISTRAL_SMALL = {**MISTRAL, "vocab_size": 131072, "rope_theta": 1000000000.0, "max_position_embeddings": 131072}
PHI_4 = {
    **LLAMA_2,
    "model_type": "phi3",
    "vocab_size": 100352,
    "rope_theta": 250000.0,
    "max_position_embeddings": 16384,
}
GRANITE_3 = {
    "model_type": "granite",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000000.0,
    "vocab_size": 49159,
    "max_position_embeddings": 131072,
    "attention_multiplier": 0.0078125,
    "embedding_multiplier": 12.0,
    "logits_scaling": 16.0,
    "residual_multiplier": 0.22,
}
QWEN_3_5 = {
    "model_type": "qwen3_5_text",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000000.0,
    "vocab_size": 248320,
    "max_position_embeddings": 262144,
    "linear_num_value_heads": 48,
}
QWEN_3_MOE = {**QWEN_3, "model_type": "qwen3_moe", "norm_topk_prob": True}
QWEN_3_6_MOE = {**QWEN_3_5, "model_type": "qwen3_5_moe_text", "linear_num_value_heads": 32}
MIXTRAL = {**MISTRAL, "model_type": "mixtral", "rope_theta": 1000000.0, "sliding_window": None}
GPT_OSS = {
    "model_type": "gpt_oss",
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "vocab_size": 201088,
    "max_position_embeddings": 131072,
    "sliding_window": 128,
    "attention_bias": True,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            *("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"),
        ],
    },
}
GEMMA_3 = {
    "model_type": "gemma3_text",
    "rms_norm_eps": 1e-6,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window": 1024,
    "tie_word_embeddings": True,
}
GEMMA_4 = {
    "model_type": "gemma4_text",
    "rms_norm_eps": 1e-6,
    "vocab_size": 262144,
    "max_position_embeddings": 262144,
    "sliding_window": 1024,
    "attention_k_eq_v": True,
    "global_head_dim": 512,
    "num_global_key_value_heads": 4,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
DEEPSEEK_V2 = {
    "model_type": "deepseek_v2",
    "rms_norm_eps": 1e-6,
    "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    "vocab_size": 102400,
    "max_position_embeddings": 163840,
    "q_lora_rank": None,
    "n_shared_experts": 2,
    "topk_method": "greedy",
    "first_k_dense_replace": 1,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "rms_norm_eps": 1e-6,
    "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
}
GLM_4_7_FLASH = {
    "model_type": "glm4_moe_lite",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "vocab_size": 154880,
    "max_position_embeddings": 202752,
}


def _experts(count: int, chosen: int, size: int, **rest: object) -> Settings:
    return {"num_experts": count, "num_experts_per_tok": chosen, "moe_intermediate_size": size, **rest}


def _routed(count: int, chosen: int, size: int) -> Settings:
    return {"n_routed_experts": count, "num_experts_per_tok": chosen, "moe_intermediate_size": size}


def _shape(
    family: Settings, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, head_dim: int = 0, **rest: object
) -> Settings:
    return {
        "tie_word_embeddings": False,
        **family,
        "hidden_size": hidden,
        **({"intermediate_size": ffn} if ffn else {}),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **({"head_dim": head_dim} if head_dim else {}),
        **rest,
    }


PRESETS: Mapping[str, Settings] = {
    "llama-2-7b": _shape(LLAMA_2, 4096, 11008, 32, 32, 32),
    "llama-3-8b": _shape(LLAMA_3, 4096, 14336, 32, 32, 8, max_position_embeddings=8192),
    "llama-3-70b": _shape(LLAMA_3, 8192, 28672, 80, 64, 8, max_position_embeddings=8192),
    "llama-3.1-8b": _shape(LLAMA_3_1, 4096, 14336, 32, 32, 8),
    "llama-3.1-70b": _shape(LLAMA_3_1, 8192, 28672, 80, 64, 8),
    "llama-3.1-405b": _shape(LLAMA_3_1, 16384, 53248, 126, 128, 8),
    "llama-3.2-1b": _shape(LLAMA_3_2, 2048, 8192, 16, 32, 8, 64),
    "llama-3.2-3b": _shape(LLAMA_3_2, 3072, 8192, 28, 24, 8, 128),
    "mistral-7b": _shape(MISTRAL, 4096, 14336, 32, 32, 8),
    "mistral-small-3.1-24b": _shape(MISTRAL_SMALL, 5120, 32768, 40, 32, 8, 128, sliding_window=None),
    "qwen2.5-0.5b": _shape(QWEN_2_5_SMALL, 896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": _shape(QWEN_2_5_SMALL, 1536, 8960, 28, 12, 2),
    "qwen2.5-7b": _shape(QWEN_2_5, 3584, 18944, 28, 28, 4),
    "qwen2.5-32b": _shape(QWEN_2_5, 5120, 27648, 64, 40, 8),
    "qwen2.5-72b": _shape(QWEN_2_5, 8192, 29568, 80, 64, 8),
    "qwen3-0.6b": _shape(QWEN_3, 1024, 3072, 28, 16, 8, 128, tie_word_embeddings=True),
    "qwen3-8b": _shape(QWEN_3, 4096, 12288, 36, 32, 8, 128),
    "qwen3-32b": _shape(QWEN_3, 5120, 25600, 64, 64, 8, 128),
    "qwen3.5-27b": _shape(QWEN_3_5, 5120, 17408, 64, 24, 4, 256),
    "deepseek-v2-lite": _shape(DEEPSEEK_V2, 2048, 10944, 27, 16, 16, 0, **_routed(64, 6, 1408)),
    "deepseek-v3": _shape(DEEPSEEK_V3, 7168, 18432, 61, 128, 128, 0, **_routed(256, 8, 2048)),
    "glm-4.7-flash": _shape(GLM_4_7_FLASH, 2048, 10240, 47, 20, 20, 0, **_routed(64, 4, 1536)),
    "qwen3-30b-a3b": _shape(QWEN_3_MOE, 2048, 6144, 48, 32, 4, 128, **_experts(128, 8, 768)),
    "qwen3.6-35b-a3b": _shape(
        QWEN_3_6_MOE, 2048, 0, 40, 16, 2, 256, **_experts(256, 8, 512, shared_expert_intermediate_size=512)
    ),
    "mixtral-8x7b": _shape(MIXTRAL, 4096, 14336, 32, 32, 8, num_local_experts=8, num_experts_per_tok=2),
    "gpt-oss-20b": _shape(GPT_OSS, 2880, 2880, 24, 64, 8, 64, num_local_experts=32, num_experts_per_tok=4),
    "gpt-oss-120b": _shape(GPT_OSS, 2880, 2880, 36, 64, 8, 64, num_local_experts=128, num_experts_per_tok=4),
    "gemma-3-27b": _shape(GEMMA_3, 5376, 21504, 62, 32, 16, 128, query_pre_attn_scalar=168),
    "gemma-4-31b": _shape(GEMMA_4, 5376, 21504, 60, 32, 16, 256),
    "phi-4-14b": _shape(PHI_4, 5120, 17920, 40, 40, 10, max_position_embeddings=16384),
    "granite-3.3-8b": _shape(GRANITE_3, 4096, 12800, 40, 32, 8, tie_word_embeddings=True),
}
