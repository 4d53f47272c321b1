"""Which models are read, as every refusal lists them."""

from pipeline.errors import ConfigError
from pipeline.models.json_object import JsonObject

QUANTIZED = (
    "fp8 with weight_block_size or one scale for each matrix; compressed-tensors pack-quantized of 4 and 8 bits in "
    "groups or rows, int-quantized, float-quantized, naive-quantized, mxfp4-pack-quantized and nvfp4-pack-quantized; "
    "awq gemm; gptq and gptq_v2 of 4 and 8 bits; mxfp4; modelopt FP8 and NVFP4; bitsandbytes nf4"
)
"""How weights may be stored beside plain floats."""
NAMES = (
    "DeepSeek-V2, V3, V3.2 and V4 (deepseek_v2, deepseek_v3, deepseek_v32, deepseek_v4)",
    "GLM-4.7-Flash and GLM-5 (glm4_moe_lite, glm_moe_dsa)",
    "Kimi K2 (kimi_k2, kimi_k25)",
    "Gemma 2 (gemma2)",
    "Gemma 3 (gemma3)",
    "its text model (gemma3_text)",
    "Gemma 4 (gemma4)",
    "its text model (gemma4_text)",
    "GLM-4 (glm4)",
    "GLM-4.5 to 4.7 (glm4_moe)",
    "gpt-oss (gpt_oss)",
    "Llama 2/3/3.1/3.2 (llama)",
    "MiniMax M2 (minimax_m2)",
    "Mistral (mistral)",
    "Ministral (ministral)",
    "Ministral 3 (ministral3)",
    "Mistral Small 3.1 and later (mistral3, mistral4)",
    "OLMo 2 (olmo2)",
    "OLMo 3 (olmo3)",
    "OLMoE (olmoe)",
    "Mixtral (mixtral)",
    "Qwen2/2.5 (qwen2)",
    "Qwen1.5/2 with experts (qwen2_moe)",
    "Qwen3 (qwen3), also with experts (qwen3_moe)",
    "Qwen3.5/3.6/3.8 (qwen3_5, qwen3_5_text), also with experts (qwen3_5_moe, qwen3_5_moe_text)",
    "Qwen3-Next (qwen3_next)",
    "Phi 3, 3.5 and 4 (phi3)",
    "Granite 3 (granite)",
    "SmolLM3 (smollm3)",
)
SUPPORTED = (
    f"{', '.join(NAMES)}, attention_bias and mlp_bias of those that have them in transformers, activations "
    "silu, gelu_pytorch_tanh and relu2, rope types default, linear, llama3, yarn, dynamic, longrope and proportional, "
    "dtypes float32, float16, bfloat16, and float64, which is computed in float32, or quantised weights "
    f"({QUANTIZED})"
)


def unsupported(settings: JsonObject, key: str) -> ConfigError:
    """The refusal of what `key` asks for."""
    return settings.error(key, f"a model that is supported: {SUPPORTED}", settings.get(key), "use another checkpoint")
