"""The configs of tiny models whose matrices are of sizes that every format can store."""

from collections.abc import Callable
from typing import Any

from support.family_case import EVEN_LATENT
from transformers import DeepseekV3Config, LlamaConfig, MixtralConfig, Qwen2Config, Qwen2MoeConfig, Qwen3MoeConfig

VOCABULARY_SIZE = 264  # a multiple of 8, in which AWQ and GPTQ pack rows
SHAPE = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 64,
    "intermediate_size": 160,  # no multiple of the 128 of a block
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 32,
    "mlp_only_layers": [1],
}
FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": lambda **sizes: LlamaConfig(**{**SHAPE, **sizes}),
    "qwen2_tied": lambda **sizes: Qwen2Config(**{**SHAPE, **sizes}, tie_word_embeddings=True),
    "deepseek_v3": lambda **sizes: DeepseekV3Config(**SHAPE | EVEN_LATENT | sizes),
    "mixtral": lambda **sizes: MixtralConfig(**SHAPE | {"num_local_experts": 4} | sizes),
    "qwen2_moe": lambda **sizes: Qwen2MoeConfig(**SHAPE | EXPERTS | sizes),
    "qwen3_moe": lambda **sizes: Qwen3MoeConfig(**SHAPE | EXPERTS | sizes),
}
DENSE = ("llama", "qwen2_tied")
