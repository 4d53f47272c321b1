"""Qwen3.5, 3.6 and 3.8 with experts: the layers of Qwen3.5, all with experts, one of them shared by all tokens."""

from pipeline.models.expert_settings import SHARED_SIZE, read_experts
from pipeline.models.families import qwen3_5
from pipeline.models.families.family import Family, Wrapper
from pipeline.models.feed_forwards import Routing
from pipeline.models.json_object import JsonObject
from pipeline.models.layers import Layer


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for their mixers."""
    experts = read_experts(settings, routing=Routing(), shared_size=SHARED_SIZE)
    return qwen3_5.hybrid_layers(settings, [experts] * count, grouped=False)


FAMILY = Family(
    name="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    absent={
        **qwen3_5.ABSENT,
        "num_key_value_heads": 2,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        SHARED_SIZE: 512,
    },
    follows=qwen3_5.FAMILY.follows,
    layers=layers,
)
WRAPPER = Wrapper(
    name="qwen3_5_moe", architecture="Qwen3_5MoeForConditionalGeneration", texts=("qwen3_5_moe_text",), tied=False
)
