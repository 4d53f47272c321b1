"""Qwen3-Next: the layers of Qwen3.5, whose delta nets are stored in groups of heads; most of them have experts."""

from pipeline.models import expert_settings
from pipeline.models.expert_settings import SHARED_SIZE, read_sparse_experts
from pipeline.models.families import qwen3_5
from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layers import Layer


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for their mixers, and for those that have no experts."""
    experts = read_sparse_experts(settings, count, SHARED_SIZE)
    return qwen3_5.hybrid_layers(settings, experts, grouped=True)


FAMILY = Family(
    name="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    absent={
        **qwen3_5.ABSENT,
        **expert_settings.ABSENT,
        "norm_topk_prob": True,
        "num_key_value_heads": 2,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        SHARED_SIZE: 512,
    },
    follows=qwen3_5.FAMILY.follows,
    layers=layers,
)
