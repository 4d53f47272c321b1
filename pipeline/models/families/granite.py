"""Granite 3: Llama's layers, with a number of its own at each place where others have 1."""

from dataclasses import replace

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import Layer
from pipeline.models.outside import Outside


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike."""
    mixer = replace(read_attention(settings), scale=settings.positive("attention_multiplier"))
    layer = read_layer(settings, mixer=mixer)
    return (replace(layer, residual_multiplier=settings.positive("residual_multiplier")),) * count


def outside(settings: JsonObject) -> Outside:
    """Two numbers."""
    return Outside(
        embedding_multiplier=settings.positive("embedding_multiplier"),
        logits_divisor=settings.positive("logits_scaling"),
    )


FAMILY = Family(
    name="granite",
    architecture="GraniteForCausalLM",
    absent={
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
    },
    follows=frozenset({"attention_bias", "mlp_bias"}),
    layers=layers,
    outside=outside,
)
