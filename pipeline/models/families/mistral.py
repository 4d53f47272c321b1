"""Mistral: the plain layer without biases, with a sliding window in all layers or in none."""

from dataclasses import replace

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import Layer


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike."""
    attention = replace(read_attention(settings), window=settings.optional_count("sliding_window"))
    return (read_layer(settings, mixer=attention),) * count


FAMILY = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    absent={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    layers=layers,
)
