"""OLMoE: experts in every layer, and norms of whole projections of queries and keys."""

from dataclasses import replace

from pipeline.models.expert_settings import read_experts
from pipeline.models.families.family import Family
from pipeline.models.feed_forwards import Routing
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import Layer
from pipeline.models.supported import unsupported


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike."""
    if settings.get("clip_qkv") is not None:
        raise unsupported(settings, "clip_qkv")
    attention = replace(read_attention(settings), query_key_norms="projection")
    routing = Routing(normalized=settings.flag("norm_topk_prob"))
    experts = read_experts(settings, routing=routing, size="intermediate_size")
    return (read_layer(settings, mixer=attention, experts=experts),) * count


FAMILY = Family(
    name="olmoe",
    architecture="OlmoeForCausalLM",
    absent={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 50279,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
    follows=frozenset({"attention_bias"}),
    layers=layers,
)
