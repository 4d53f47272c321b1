"""OLMo 2: norms behind each half in place of those before, and of whole projections of queries and keys."""

from dataclasses import replace

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import Attention, Layer, Norms

NORMS = Norms(
    before_mixer=None,
    after_mixer="post_attention_layernorm",
    before_feed_forward=None,
    after_feed_forward="post_feedforward_layernorm",
)


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike."""
    return (layer_of(settings, read_attention(settings)),) * count


def layer_of(settings: JsonObject, attention: Attention) -> Layer:
    """A layer with this attention, whose queries and keys get norms."""
    mixer = replace(attention, query_key_norms="projection")
    layer = read_layer(settings, mixer=mixer)
    return replace(layer, norms=NORMS, norm_style="wide")


FAMILY = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    absent={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": 50279},
    follows=frozenset({"attention_bias"}),
    layers=layers,
)
