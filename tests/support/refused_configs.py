"""What config.json says of published models that are not read, each with the key that its refusal names."""

from typing import Any

from support.published_configs import FP8, Settings, gemma, llama, nested, qwen, qwen3_5, shape

SIZES = (4096, 12288, 32)
HEADS = (32, 8, 128)
EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}


def other(model_type: str, architecture: str, **more: Any) -> Settings:
    """Of a family that is not read."""
    return shape(model_type, SIZES, 151936, HEADS, architectures=[architecture], **more)


GEMMA_4 = {"hidden_size_per_layer_input": 0, "sliding_window": 1024}
REFUSED: dict[str, tuple[Settings, str]] = {
    "gpt-oss-20b that chooses too many": (
        other("gpt_oss", "GptOssForCausalLM", num_local_experts=32, num_experts_per_tok=33),
        "num_experts_per_tok",
    ),
    "OLMoE with clipped queries": (other("olmoe", "OlmoeForCausalLM", clip_qkv=8.0), "clip_qkv"),
    "Qwen3-30B-A3B of which one expert is used too many": (
        other("qwen3_moe", "Qwen3MoeForCausalLM", **{**EXPERTS, "num_experts_per_tok": 129}),
        "num_experts_per_tok",
    ),
    "Qwen3-30B-A3B whose dense layers are no list": (
        other("qwen3_moe", "Qwen3MoeForCausalLM", **EXPERTS, mlp_only_layers=3),
        "mlp_only_layers",
    ),
    "Qwen3-30B-A3B with windows in some layers": (
        other(
            "qwen3_moe", "Qwen3MoeForCausalLM", **EXPERTS, layer_types=["sliding_attention"] + ["full_attention"] * 31
        ),
        "layer_types",
    ),
    "Qwen2.5-VL-7B": (other("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"), "model_type"),
    "DeepSeek-V2 by another name": (
        other("deepseek_v3", "DeepseekV3ForCausalLM", topk_method="group_limited_greedy", num_key_value_heads=32),
        "topk_method",
    ),
    "DeepSeek-V3 of fewer keys than queries": (
        other("deepseek_v3", "DeepseekV3ForCausalLM", num_key_value_heads=8),
        "num_key_value_heads",
    ),
    "DeepSeek-V4-Flash of several keys": (other("deepseek_v4", "DeepseekV4ForCausalLM"), "num_key_value_heads"),
    "DeepSeek-V4-Flash whose windows end inside KV blocks": (
        other("deepseek_v4", "DeepseekV4ForCausalLM", num_key_value_heads=1, compress_rate_hca=24),
        "compress_rate_hca",
    ),
    "DeepSeek-V4-Flash that compresses at a rate of its own": (
        other("deepseek_v4", "DeepseekV4ForCausalLM", num_key_value_heads=1, compress_ratios=[0, 8] * 16),
        "compress_ratios",
    ),
    "DeepSeek-V4-Flash with rates that are no numbers": (
        other("deepseek_v4", "DeepseekV4ForCausalLM", num_key_value_heads=1, compress_ratios=["0", "4"] * 16),
        "compress_ratios",
    ),
    "DeepSeek-V4-Flash with a layer without experts": (
        other("deepseek_v4", "DeepseekV4ForCausalLM", num_key_value_heads=1, mlp_layer_types=["dense"] + ["moe"] * 31),
        "mlp_layer_types",
    ),
    "DeepSeek-V4-Flash with other scores": (
        other("deepseek_v4", "DeepseekV4ForCausalLM", num_key_value_heads=1, scoring_func="softmax"),
        "scoring_func",
    ),
    "DeepSeek-V4-Flash in uneven groups of heads": (
        other("deepseek_v4", "DeepseekV4ForCausalLM", num_key_value_heads=1, o_groups=5),
        "o_groups",
    ),
    "DeepSeek-V4-Flash with experts in six bits": (
        other(
            "deepseek_v4",
            "DeepseekV4ForCausalLM",
            num_key_value_heads=1,
            expert_dtype="fp6",
            quantization_config=FP8,
        ),
        "expert_dtype",
    ),
    "GLM-4.5-Air in uneven groups": (
        other("glm4_moe", "Glm4MoeForCausalLM", n_routed_experts=128, n_group=3),
        "n_group",
    ),
    "GLM-4.5-Air in groups of one": (other("glm4_moe", "Glm4MoeForCausalLM", n_routed_experts=8, n_group=8), "n_group"),
    "GLM-4.5-Air that chooses from too few groups": (
        other("glm4_moe", "Glm4MoeForCausalLM", n_routed_experts=16, n_group=4, num_experts_per_tok=5),
        "num_experts_per_tok",
    ),
    "GLM-5.2 without experts in between": (
        other("glm_moe_dsa", "GlmMoeDsaForCausalLM", mlp_layer_types=["sparse", "dense"] * 16, num_key_value_heads=32),
        "mlp_layer_types",
    ),
    "GLM-5.2 whose first layer has no indexer": (
        other("glm_moe_dsa", "GlmMoeDsaForCausalLM", index_topk_pattern="SF" * 16, num_key_value_heads=32),
        "index_topk_pattern",
    ),
    "DeepSeek-V3.2 with narrow index keys": (
        other("deepseek_v32", "DeepseekV32ForCausalLM", index_head_dim=32),
        "index_head_dim",
    ),
    "Mistral-Small-4 of which more turns than is said": (
        nested(
            "mistral3",
            "Mistral3ForConditionalGeneration",
            other("mistral4", "", num_key_value_heads=32, partial_rotary_factor=0.25, rope_scaling=None),
        ),
        "text_config: partial_rotary_factor",
    ),
    "Nemotron-3-Nano-30B": (other("nemotron_h", "NemotronHForCausalLM"), "model_type"),
    "LFM2-8B-A1B": (other("lfm2_moe", "Lfm2MoeForCausalLM"), "model_type"),
    "Llama-4-Scout": (nested("llama4", "Llama4ForConditionalGeneration", other("llama4_text", "")), "model_type"),
    "Llama-3.2-11B-Vision": (
        nested("mllama", "MllamaForConditionalGeneration", other("mllama_text", "")),
        "model_type",
    ),
    "gemma-4-26B-A4B without a number of experts": (
        nested(
            "gemma4",
            "Gemma4ForConditionalGeneration",
            gemma("gemma4_text", (2816, 2112, 30), 262144, (16, 8, 256), enable_moe_block=True, **GEMMA_4),
        ),
        "text_config: num_experts",
    ),
    "gemma-4-E4B": (
        nested(
            "gemma4",
            "Gemma4ForConditionalGeneration",
            gemma("gemma4_text", (2560, 10240, 42), 262144, (8, 2, 256), num_kv_shared_layers=18),
        ),
        "text_config: hidden_size_per_layer_input",
    ),
    "gemma-3n-E4B": (nested("gemma3n", "Gemma3nForConditionalGeneration", other("gemma3n_text", "")), "model_type"),
    "embeddinggemma-300m": (
        gemma(
            "gemma3_text",
            (768, 1152, 24),
            262144,
            (3, 1, 256),
            sliding_window=512,
            architectures=["Gemma3TextModel"],
            use_bidirectional_attention=True,
        ),
        "architectures|use_bidirectional_attention",
    ),
    "Skywork-Reward-Llama-3.1-8B": (
        llama((4096, 14336, 32), 128256, (32, 8)) | {"architectures": ["LlamaForSequenceClassification"]},
        "architectures",
    ),
    "gte-Qwen2-7B": (qwen("qwen2", (3584, 18944, 28), (28, 4), is_causal=False), "is_causal"),
    "Phi-3.5-MoE": (other("phimoe", "PhiMoEForCausalLM", num_local_experts=16), "model_type"),
    "granite-4.0-h-tiny": (other("granitemoehybrid", "GraniteMoeHybridForCausalLM"), "model_type"),
    "Seed-OSS-36B": (other("seed_oss", "SeedOssForCausalLM"), "model_type"),
    "command-a": (other("cohere2", "Cohere2ForCausalLM"), "model_type"),
    "EXAONE-4.0-32B": (other("exaone4", "Exaone4ForCausalLM"), "model_type"),
    "Qwen3.5-27B of 8 bits by bitsandbytes": (
        qwen3_5((5120, 17408, 64), 24, 48, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "load_in_8bit",
    ),
    "Qwen3-8B with windows of FP8 e5m2": (
        qwen("qwen3", (4096, 12288, 36), (32, 8, 128), quantization_config={**FP8, "fmt": "e5m2"}),
        "fmt",
    ),
}
