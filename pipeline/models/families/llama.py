"""Llama 2, 3, 3.1 and 3.2: the plain layer, whose matrices may all have biases."""

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import ATTENTION_MATRICES, FEED_FORWARD_MATRICES, Layer


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike."""
    attention = ATTENTION_MATRICES if settings.flag("attention_bias") else ()
    feed_forward = FEED_FORWARD_MATRICES if settings.flag("mlp_bias") else ()
    return (read_layer(settings, mixer=read_attention(settings), biases=(*attention, *feed_forward)),) * count


FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    absent={"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    follows=frozenset({"attention_bias", "mlp_bias"}),
    layers=layers,
)
