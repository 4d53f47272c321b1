"""Qwen3, dense: each head of queries and keys has a norm, and some layers may have a sliding window."""

from dataclasses import replace

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_late_windows, read_layer
from pipeline.models.layers import Layer


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for the window."""
    attention, windows = read_attention(settings), read_late_windows(settings, count)
    mixers = [replace(attention, window=window, query_key_norms="heads") for window in windows]
    return tuple(read_layer(settings, mixer=mixer) for mixer in mixers)


FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    absent={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    follows=frozenset({"attention_bias", "layer_types"}),
    layers=layers,
)
