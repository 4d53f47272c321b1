"""Llama 2, 3, 3.1 and 3.2: the plain layer, whose matrices may all have biases."""

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import Layer


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike."""
    return (read_layer(settings, mixer=read_attention(settings)),) * count


FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    absent={"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    follows=frozenset({"attention_bias", "mlp_bias"}),
    layers=layers,
)
