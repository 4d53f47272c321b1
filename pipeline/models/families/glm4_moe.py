"""GLM-4.5 to 4.7: half of each head turns, and behind the first layers experts are chosen from groups."""

from dataclasses import replace

from pipeline.models.expert_settings import behind_dense, read_grouped_experts
from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import Layer


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for the first ones, which have no experts."""
    attention = read_attention(settings, is_partial=True)
    mixer = replace(attention, query_key_norms="heads") if settings.flag("use_qk_norm") else attention
    biases = ("q", "k", "v") if settings.flag("attention_bias") else ()
    dense = read_layer(settings, mixer=mixer, biases=biases)
    return behind_dense(settings, dense, replace(dense, feed_forward=read_grouped_experts(settings)), count)


FAMILY = Family(
    name="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    absent={
        "vocab_size": 151552,
        "hidden_size": 4096,
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
    follows=frozenset({"attention_bias"}),
    layers=layers,
)
