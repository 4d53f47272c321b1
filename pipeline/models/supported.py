"""Which models are read: one row per family, and the list that every refusal shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.models.settings import JsonObject

SUPPORTED = (
    "Llama 2/3/3.1/3.2 (llama), Mistral (mistral), Qwen2/2.5 (qwen2) and Qwen3 (qwen3), dense, unquantised, "
    "attention_bias of llama and qwen3, mlp_bias of llama, hidden_act silu, rope types default, linear, llama3, yarn, "
    "dynamic and longrope, one kind of attention in all layers, dtypes float32, float16, bfloat16, and float64, which "
    "is computed in float32"
)
BIASES = {"attention_bias": ("q", "k", "v", "o"), "mlp_bias": ("gate", "up", "down")}
"""Keys of config.json, and the matrices to which each gives a bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row per family: its class, its flags, and what transformers assumes for keys that config.json leaves out.

    `biases` are those that it has always, `bias_keys` those of `BIASES` that it follows.
    """

    architecture: str
    biases: tuple[str, ...] = ()
    bias_keys: tuple[str, ...] = ()
    qk_norm: bool = False
    windowed_layers: Literal["none", "all", "declared"]
    absent: Mapping[str, object]


FAMILIES = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        bias_keys=("attention_bias", "mlp_bias"),
        windowed_layers="none",
        absent={"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        windowed_layers="all",
        absent={
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        biases=("q", "k", "v"),
        windowed_layers="declared",
        absent={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 32,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        bias_keys=("attention_bias",),
        qk_norm=True,
        windowed_layers="declared",
        absent={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
    ),
}


def unsupported(settings: JsonObject, key: str) -> ConfigError:
    """The refusal of what `key` asks for."""
    return settings.error(key, f"a model that is supported: {SUPPORTED}", settings.get(key), "use another checkpoint")
