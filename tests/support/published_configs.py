"""What config.json says of published models that are read: values alone, without what changes nothing.

Each with its parameters in thousand millions, as its publisher counts them, without towers and what drafts.
"""

from typing import Any

Settings = dict[str, Any]
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def shape(model_type: str, sizes: tuple[int, ...], vocabulary: int, heads: tuple[int, ...], **more: Any) -> Settings:
    """`sizes` are hidden, feed-forward and layers; `heads` those of queries, of keys, and perhaps their channels."""
    hidden, feed_forward, layers = sizes
    names = ("num_attention_heads", "num_key_value_heads", "head_dim")
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        **dict(zip(names, heads, strict=False)),
        **more,
    }


def nested(model_type: str, architecture: str, text: Settings, **more: Any) -> Settings:
    """A model that sees, around a text model."""
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "text_config": text,
        "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
        "dtype": "bfloat16",
        **more,
    }


def llama(sizes: tuple[int, ...], vocabulary: int, heads: tuple[int, ...], **more: Any) -> Settings:
    return shape("llama", sizes, vocabulary, heads, architectures=["LlamaForCausalLM"], hidden_act="silu", **more)


def qwen(model_type: str, sizes: tuple[int, ...], heads: tuple[int, ...], **more: Any) -> Settings:
    window = {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": sizes[2]}
    return shape(model_type, sizes, more.pop("vocabulary", 151936), heads, rope_theta=1e6, **window, **more)


def qwen3_5(sizes: tuple[int, ...], heads: int, value_heads: int, **more: Any) -> Settings:
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * (sizes[2] // 4)
    rope = {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
    }
    linear = {"linear_num_value_heads": value_heads, "linear_num_key_heads": 16, "linear_conv_kernel_dim": 4}
    text = shape("qwen3_5_text", sizes, 248320, (heads, 4, 256), layer_types=kinds, rope_parameters=rope, **linear)
    tied = more.pop("tied", False)
    text |= {"mtp_num_hidden_layers": 1, "attn_output_gate": True, "tie_word_embeddings": tied}
    return nested("qwen3_5", "Qwen3_5ForConditionalGeneration", text, tie_word_embeddings=tied, **more)


def ministral3(sizes: tuple[int, ...], **more: Any) -> Settings:
    rope = {
        "rope_type": "yarn",
        "type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    text = shape("ministral3", sizes, 131072, (32, 8, 128), rope_parameters=rope, sliding_window=None)
    return nested("mistral3", "Mistral3ForConditionalGeneration", text, **more)


def phi3(sizes: tuple[int, ...], heads: tuple[int, ...], vocabulary: int = 32064, **more: Any) -> Settings:
    return shape("phi3", sizes, vocabulary, heads, architectures=["Phi3ForCausalLM"], hidden_act="silu", **more)


def longrope(channels: int) -> Settings:
    factors = [1.0 + 0.5 * index for index in range(channels // 2)]
    return {
        "rope_scaling": {"type": "longrope", "short_factor": factors, "long_factor": factors},
        "original_max_position_embeddings": 4096,
        "max_position_embeddings": 131072,
    }


def gemma(model_type: str, sizes: tuple[int, ...], vocabulary: int, heads: tuple[int, ...], **more: Any) -> Settings:
    return shape(model_type, sizes, vocabulary, heads, hidden_activation="gelu_pytorch_tanh", **more)


GEMMA_3_ROPE = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
GEMMA_4_ROPE = {
    "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
OLMO_3_ROPE = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "attention_factor": 1.2079441541679836,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
QWEN_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
GRANITE = {
    "attention_multiplier": 0.0078125,
    "embedding_multiplier": 12.0,
    "logits_scaling": 16.0,
    "residual_multiplier": 0.22,
    "tie_word_embeddings": True,
    "rope_theta": 1e7,
}
FP8_OF_QWEN3_5 = {**FP8, "modules_to_not_convert": ["lm_head", "model.visual", "model.language_model.embed_tokens"]}

ACCEPTED: dict[str, tuple[Settings, float]] = {
    "Llama-2-7b": (llama((4096, 11008, 32), 32000, (32, 32)), 6.74),
    "Llama-2-70b": (llama((8192, 28672, 80), 32000, (64, 8)), 68.98),
    "Meta-Llama-3-8B": (llama((4096, 14336, 32), 128256, (32, 8), rope_theta=5e5), 8.03),
    "Llama-3.1-8B": (llama((4096, 14336, 32), 128256, (32, 8), rope_theta=5e5, rope_scaling=LLAMA_3_ROPE), 8.03),
    "Llama-3.1-405B": (llama((16384, 53248, 126), 128256, (128, 8), rope_scaling=LLAMA_3_ROPE), 405.85),
    "Llama-3.2-1B": (llama((2048, 8192, 16), 128256, (32, 8, 64), tie_word_embeddings=True), 1.236),
    "Llama-3.3-70B": (llama((8192, 28672, 80), 128256, (64, 8), rope_scaling=LLAMA_3_ROPE), 70.55),
    "Llama-3.3-70B-AWQ": (llama((8192, 28672, 80), 128256, (64, 8), quantization_config=AWQ), 70.55),
    "TinyLlama-1.1B": (llama((2048, 5632, 22), 32000, (32, 4)), 1.1),
    "SmolLM2-1.7B": (llama((2048, 8192, 24), 49152, (32, 32), rope_theta=130000, tie_word_embeddings=True), 1.71),
    "Yi-34B": (llama((7168, 20480, 60), 64000, (56, 8), rope_theta=5e6), 34.39),
    "DeepSeek-R1-Distill-Llama-8B": (llama((4096, 14336, 32), 128256, (32, 8), rope_scaling=LLAMA_3_ROPE), 8.03),
    "Mistral-7B-v0.1": (shape("mistral", (4096, 14336, 32), 32000, (32, 8), sliding_window=4096), 7.24),
    "Mistral-7B-v0.3": (shape("mistral", (4096, 14336, 32), 32768, (32, 8), sliding_window=None), 7.25),
    "Mistral-Nemo-12B": (shape("mistral", (5120, 14336, 40), 131072, (32, 8, 128), sliding_window=None), 12.25),
    "Mistral-Small-24B": (shape("mistral", (5120, 32768, 40), 131072, (32, 8, 128), sliding_window=None), 23.57),
    "Mistral-Small-3.1-24B": (
        nested(
            "mistral3",
            "Mistral3ForConditionalGeneration",
            shape("mistral", (5120, 32768, 40), 131072, (32, 8, 128), rope_theta=1e9, sliding_window=None),
            tie_word_embeddings=False,
        ),
        23.57,
    ),
    "Ministral-8B": (
        shape(
            "ministral",
            (4096, 12288, 36),
            131072,
            (32, 8, 128),
            sliding_window=32768,
            layer_types=["full_attention", *["sliding_attention"] * 3] * 9,
        ),
        8.02,
    ),
    "Ministral-3-8B": (ministral3((4096, 14336, 34), tie_word_embeddings=False), 8.49),
    "Ministral-3-14B": (ministral3((5120, 16384, 40), tie_word_embeddings=False), 13.51),
    "Ministral-3-3B": (ministral3((3072, 9216, 26), tie_word_embeddings=True), 3.43),
    "Qwen2-7B": (qwen("qwen2", (3584, 18944, 28), (28, 4), vocabulary=152064), 7.62),
    "Qwen2.5-0.5B": (qwen("qwen2", (896, 4864, 24), (14, 2), tie_word_embeddings=True), 0.494),
    "Qwen2.5-72B": (qwen("qwen2", (8192, 29568, 80), (64, 8), vocabulary=152064), 72.7),
    "Qwen2.5-72B-GPTQ": (
        qwen("qwen2", (8192, 29568, 80), (64, 8), vocabulary=152064, quantization_config=GPTQ),
        72.7,
    ),
    "QwQ-32B": (qwen("qwen2", (5120, 27648, 64), (40, 8), vocabulary=152064, rope_scaling=QWEN_YARN), 32.76),
    "Qwen3-0.6B": (qwen("qwen3", (1024, 3072, 28), (16, 8, 128), tie_word_embeddings=True), 0.596),
    "Qwen3-8B": (qwen("qwen3", (4096, 12288, 36), (32, 8, 128)), 8.19),
    "Qwen3-32B": (qwen("qwen3", (5120, 25600, 64), (64, 8, 128), rope_scaling=QWEN_YARN), 32.76),
    "Qwen3-32B-FP8": (qwen("qwen3", (5120, 25600, 64), (64, 8, 128), quantization_config=FP8), 32.76),
    "Qwen3.5-4B": (qwen3_5((2560, 9216, 32), 16, 32, tied=True), 4.2),
    "Qwen3.5-9B": (qwen3_5((4096, 12288, 32), 16, 32), 8.95),
    "Qwen3.5-27B": (qwen3_5((5120, 17408, 64), 24, 48), 26.9),
    "Qwen3.5-27B-FP8": (qwen3_5((5120, 17408, 64), 24, 48, quantization_config=FP8_OF_QWEN3_5), 26.9),
    "Phi-3-mini-4k": (phi3((3072, 8192, 32), (32, 32), sliding_window=2047), 3.82),
    "Phi-3.5-mini": (phi3((3072, 8192, 32), (32, 32), sliding_window=262144, **longrope(96)), 3.82),
    "Phi-4": (phi3((5120, 17920, 40), (40, 10), 100352, rope_theta=250000, sliding_window=None), 14.66),
    "Phi-4-mini": (
        phi3((3072, 8192, 32), (24, 8), 200064, partial_rotary_factor=0.75, tie_word_embeddings=True, **longrope(96)),
        3.84,
    ),
    "granite-3.3-8b": (shape("granite", (4096, 12800, 40), 49159, (32, 8), **GRANITE), 8.17),
    "granite-3.1-2b": (shape("granite", (2048, 8192, 40), 49155, (32, 8), **GRANITE), 2.53),
    "SmolLM3-3B": (
        shape(
            "smollm3",
            (2048, 11008, 36),
            128256,
            (16, 4),
            rope_theta=5e6,
            no_rope_layers=[1, 1, 1, 0] * 9,
            layer_types=["full_attention"] * 36,
            sliding_window=None,
        ),
        3.08,
    ),
    "gemma-2-9b": (gemma("gemma2", (3584, 14336, 42), 256000, (16, 8, 256), query_pre_attn_scalar=256), 9.24),
    "gemma-2-27b": (gemma("gemma2", (4608, 36864, 46), 256000, (32, 16, 128), query_pre_attn_scalar=144), 27.23),
    "gemma-3-1b": (gemma("gemma3_text", (1152, 6912, 26), 262144, (4, 1, 256), sliding_window=512), 1.0),
    "gemma-3-27b": (
        nested(
            "gemma3",
            "Gemma3ForConditionalGeneration",
            gemma(
                "gemma3_text",
                (5376, 21504, 62),
                262208,
                (32, 16, 128),
                query_pre_attn_scalar=168,
                sliding_window=1024,
                **GEMMA_3_ROPE,
            ),
        ),
        27.0,
    ),
    "gemma-4-31b": (
        nested(
            "gemma4",
            "Gemma4ForConditionalGeneration",
            gemma(
                "gemma4_text",
                (5376, 21504, 60),
                262144,
                (32, 16, 256),
                attention_k_eq_v=True,
                global_head_dim=512,
                num_global_key_value_heads=4,
                hidden_size_per_layer_input=0,
                final_logit_softcapping=30.0,
                sliding_window=1024,
                rope_parameters=GEMMA_4_ROPE,
                use_bidirectional_attention="vision",
            ),
        ),
        30.7,
    ),
    "OLMo-2-7B": (shape("olmo2", (4096, 11008, 32), 100352, (32, 32), rope_theta=5e5), 7.3),
    "Olmo-3-7B": (
        shape("olmo3", (4096, 11008, 32), 100278, (32, 32), rope_theta=5e5, rope_scaling=OLMO_3_ROPE),
        7.3,
    ),
    "GLM-4-9B": (shape("glm4", (4096, 13696, 40), 151552, (32, 2, 128), attention_bias=True), 9.4),
    "GLM-4-32B": (shape("glm4", (6144, 23040, 61), 151552, (48, 2, 128), attention_bias=False), 32.57),
}
