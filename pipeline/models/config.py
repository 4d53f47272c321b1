"""Reads `config.json` and `generation_config.json` of a Hugging Face folder, as data: nothing that they name is run.

Both spellings are understood, that of transformers 4 (`rope_theta` + `rope_scaling`, `torch_dtype`) and that of
transformers 5 (`rope_parameters`, `dtype`). What is not supported is refused by name.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from pipeline.errors import ConfigError
from pipeline.models.settings import Settings

MAX_LAYERS = 10_000
GENERATION_DEFAULTS = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SUPPORTED = (
    "Llama 2/3/3.1/3.2 (llama), Mistral (mistral), Qwen2/2.5 (qwen2) and Qwen3 (qwen3), dense, unquantised, "
    "without biases beyond Qwen2's, hidden_act silu, rope types default, linear and llama3, "
    "one kind of attention in all layers, dtypes float32, float16 and bfloat16"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Rotary frequencies divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Rotary frequencies as Llama 3.1 stretches them: low ones divided by `factor`, high ones kept, a ramp between."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int


RopeScaling: TypeAlias = LinearScaling | Llama3Scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape and the constants of one model; every number has been checked.

    `sliding_window` is in tokens and counts the token that looks back. `dtype` is what config.json declares of the
    checkpoint, None where it declares nothing. `eos_ids` may be empty.
    """

    family: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    vocabulary_size: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_embeddings: bool
    sliding_window: int | None
    qkv_bias: bool
    qk_norm: bool
    max_positions: int
    dtype: torch.dtype | None
    eos_ids: tuple[int, ...]
    bos_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row per family: its class, its flags, and what transformers assumes for keys that config.json leaves out."""

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    windowed_layers: Literal["none", "all", "declared"]
    absent: Mapping[str, object]


FAMILIES = {
    "llama": Family(
        architecture="LlamaForCausalLM",
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
        qkv_bias=True,
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


def read_config(folder: Path) -> ModelConfig:
    """Read and check the config of the checkpoint in `folder`.

    Raises `CheckpointError` where a file is missing or holds no JSON object, and `ConfigError` where a value is
    missing, can never work, or asks for something that is not supported.
    """
    settings = Settings.read(folder / "config.json")
    name = settings.text("model_type")
    if name not in FAMILIES:
        raise _unsupported(settings, "model_type")
    family = FAMILIES[name]
    settings = settings.with_absent(family.absent)
    _refuse_unsupported(settings, family)

    heads = settings.count("num_attention_heads")
    layers = settings.count("num_hidden_layers", at_most=MAX_LAYERS)
    vocabulary_size = settings.count("vocab_size")
    max_positions = settings.count("max_position_embeddings")
    rope_theta, rope_scaling = _read_rope(settings, max_positions)
    return ModelConfig(
        family=name,
        hidden_size=settings.count("hidden_size"),
        layers=layers,
        heads=heads,
        kv_heads=_kv_heads(settings, heads),
        head_dim=_head_dim(settings, heads),
        ffn_size=settings.count("intermediate_size"),
        vocabulary_size=vocabulary_size,
        norm_epsilon=settings.positive("rms_norm_eps", default=1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tied_embeddings=settings.flag("tie_word_embeddings"),
        sliding_window=_sliding_window(settings, family, layers),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        max_positions=max_positions,
        dtype=_declared_dtype(settings),
        eos_ids=_token_ids(folder, settings, "eos_token_id", vocabulary_size),
        bos_id=next(iter(_token_ids(folder, settings, "bos_token_id", vocabulary_size)), None),
    )


def read_generation_defaults(folder: Path) -> dict[str, float | int | bool]:
    """The sampling defaults that `generation_config.json` states: those of `GENERATION_DEFAULTS` that are not null.

    Empty where the folder has no such file. `SamplingParameters.from_arguments` checks the ranges and reads
    `do_sample`. Raises `CheckpointError` for a file that holds no JSON object, `ConfigError` for what is no number.
    """
    path = folder / "generation_config.json"
    if not os.path.lexists(path):
        return {}
    settings = Settings.read(path)
    present = [key for key in GENERATION_DEFAULTS if settings.get(key) is not None]
    return {key: settings.flag(key) if key == "do_sample" else settings.number(key) for key in present}


def _unsupported(settings: Settings, key: str) -> ConfigError:
    return settings.error(key, f"a model that is supported: {SUPPORTED}", settings.get(key), "use another checkpoint")


def _refuse_unsupported(settings: Settings, family: Family) -> None:
    if settings.get("architectures") not in (None, [family.architecture]):
        raise _unsupported(settings, "architectures")
    if settings.text("hidden_act", "silu") != "silu":
        raise _unsupported(settings, "hidden_act")
    if settings.get("quantization_config") is not None:
        raise _unsupported(settings, "quantization_config")
    # transformers gives Qwen2 its three biases whatever the config says; elsewhere the key adds a fourth one, on o.
    for key in ("mlp_bias",) if family.qkv_bias else ("attention_bias", "mlp_bias"):
        if settings.flag(key):
            raise _unsupported(settings, key)
    if not settings.flag("is_causal", default=True):  # it looks ahead, as models do that make no text
        raise _unsupported(settings, "is_causal")


def _kv_heads(settings: Settings, heads: int) -> int:
    kv_heads = settings.optional_count("num_key_value_heads") or heads
    if heads % kv_heads:
        raise settings.error("num_key_value_heads", f"a divisor of num_attention_heads = {heads}", kv_heads)
    return kv_heads


def _head_dim(settings: Settings, heads: int) -> int:
    hidden_size = settings.count("hidden_size")
    head_dim = settings.optional_count("head_dim")
    if head_dim is None and hidden_size % heads:
        raise settings.error("hidden_size", f"a multiple of num_attention_heads = {heads}, or a head_dim", hidden_size)
    head_dim = head_dim or hidden_size // heads
    if head_dim % 2:
        raise settings.error("head_dim", "an even number, since rotary embedding turns pairs", head_dim)
    return head_dim


def _read_rope(settings: Settings, max_positions: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling, with the precedence of transformers: `rope_scaling`, else `rope_parameters`, else top level."""
    rope = settings.section("rope_scaling") or settings.section("rope_parameters")
    for key in ("full_attention", "sliding_attention"):
        if rope.get(key) is not None:
            raise _unsupported(rope, key)
    for place in (settings, rope):
        if place.positive("partial_rotary_factor", default=1.0) != 1.0:
            raise _unsupported(place, "partial_rotary_factor")
    theta = rope.positive("rope_theta", default=settings.positive("rope_theta", default=10000.0))
    key = "rope_type" if rope.get("rope_type") is not None else "type"
    match rope.text(key, "default"):
        case "default":
            return theta, None
        case "linear":
            return theta, LinearScaling(factor=rope.positive("factor"))
        case "llama3":
            return theta, _read_llama3_scaling(settings, rope, max_positions)
        case _:
            raise _unsupported(rope, key)


def _read_llama3_scaling(settings: Settings, rope: Settings, max_positions: int) -> Llama3Scaling:
    key = "original_max_position_embeddings"
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if low >= high:
        raise rope.error("low_freq_factor", f"a number below high_freq_factor = {high}", low)
    return Llama3Scaling(
        factor=rope.positive("factor"),
        low_frequency_factor=low,
        high_frequency_factor=high,
        original_max_positions=settings.optional_count(key) or rope.optional_count(key) or max_positions,
    )


def _sliding_window(settings: Settings, family: Family, layers: int) -> int | None:
    """The window that all layers share, None for full attention in all. Layers that differ are refused."""
    window, first_windowed = None, layers
    if family.windowed_layers == "all":
        window, first_windowed = settings.optional_count("sliding_window"), 0
    elif family.windowed_layers == "declared" and settings.flag("use_sliding_window"):
        window, first_windowed = settings.optional_count("sliding_window"), settings.index("max_window_layers")
    full_layers = min(first_windowed, layers) if window else layers
    implied = ["full_attention"] * full_layers + ["sliding_attention"] * (layers - full_layers)
    kinds = settings.get("layer_types") or implied
    if kinds != implied and family.windowed_layers != "declared":
        raise _unsupported(settings, "layer_types")
    if kinds == ["full_attention"] * layers:
        return None
    if kinds == ["sliding_attention"] * layers and window:
        return window
    raise _unsupported(settings, "layer_types" if settings.get("layer_types") else "max_window_layers")


def _declared_dtype(settings: Settings) -> torch.dtype | None:
    key = "dtype" if settings.get("dtype") is not None else "torch_dtype"
    if settings.get(key) is None:
        return None
    name = settings.text(key).removeprefix("torch.")
    if name not in DTYPES:
        raise _unsupported(settings, key)
    return DTYPES[name]


def _token_ids(folder: Path, settings: Settings, key: str, vocabulary_size: int) -> tuple[int, ...]:
    """`generation_config.json` speaks for a special token where it names one, else `config.json` does."""
    path = folder / "generation_config.json"
    if path.exists() and (generation := Settings.read(path)).get(key) is not None:
        settings = generation
    return settings.token_ids(key, vocabulary_size)
