"""Ministral: Mistral's layers, of which each may have the window or not."""

from dataclasses import replace

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer, read_windows
from pipeline.models.layers import Layer
from pipeline.models.rope_settings import FULL, SLIDING


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for the window."""
    attention, window = read_attention(settings), settings.optional_count("sliding_window")
    windows = read_windows(settings, window, [SLIDING if window else FULL] * count)
    return tuple(read_layer(settings, mixer=replace(attention, window=window)) for window in windows)


FAMILY = Family(
    name="ministral",
    architecture="MinistralForCausalLM",
    absent={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    follows=frozenset({"layer_types"}),
    layers=layers,
)
