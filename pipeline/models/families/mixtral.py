"""Mixtral: as Mistral, with experts in place of the feed-forward of every layer."""

from dataclasses import replace

from pipeline.models.expert_settings import read_experts
from pipeline.models.families import mistral
from pipeline.models.families.family import Family
from pipeline.models.feed_forwards import Routing
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import Layer

BLOCK = "block_sparse_moe"
NAMES = (("gate", "w1"), ("up", "w3"), ("down", "w2"))


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike."""
    attention = replace(read_attention(settings), window=settings.optional_count("sliding_window"))
    experts = read_experts(settings, routing=Routing(), size="intermediate_size")
    experts = replace(experts, router=f"{BLOCK}.gate", module=f"{BLOCK}.experts", names=NAMES)
    return (read_layer(settings, mixer=attention, experts=experts),) * count


FAMILY = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    absent={
        **mistral.FAMILY.absent,
        "sliding_window": None,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-5,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    },
    layers=layers,
)
