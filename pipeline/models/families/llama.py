"""Llama 2, 3, 3.1 and 3.2: the plain layer, whose matrices may all have biases."""

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_feed_forward, read_norm_epsilon
from pipeline.models.layers import ATTENTION_MATRICES, FEED_FORWARD_MATRICES, Layer


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike."""
    attention_biases = ATTENTION_MATRICES if settings.flag("attention_bias") else ()
    feed_forward_biases = FEED_FORWARD_MATRICES if settings.flag("mlp_bias") else ()
    layer = Layer(
        attention=read_attention(settings, biases=attention_biases),
        feed_forward=read_feed_forward(settings, biases=feed_forward_biases),
        norm_epsilon=read_norm_epsilon(settings),
    )
    return (layer,) * count


FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    absent={"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    follows=frozenset({"attention_bias", "mlp_bias"}),
    layers=layers,
)
