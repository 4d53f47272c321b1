"""Qwen3 with experts: as Qwen3, but most layers have experts, and all of them have the same window, or none."""

from dataclasses import replace

from pipeline.models import expert_settings
from pipeline.models.expert_settings import read_sparse_experts
from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import Layer


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for those that have no experts."""
    window = settings.optional_count("sliding_window") if settings.flag("use_sliding_window") else None
    mixer = replace(read_attention(settings), window=window, query_key_norms="heads")
    return tuple(read_layer(settings, mixer=mixer, experts=experts) for experts in read_sparse_experts(settings, count))


FAMILY = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    absent={
        **expert_settings.ABSENT,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    follows=frozenset({"attention_bias"}),
    layers=layers,
)
