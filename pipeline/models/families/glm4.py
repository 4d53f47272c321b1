"""GLM-4, dense: norms around each half, gate and up in one matrix, half of each head turned in neighbouring pairs."""

from dataclasses import replace

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import Layer, Norms

NORMS = Norms(after_mixer="post_self_attn_layernorm", after_feed_forward="post_mlp_layernorm")


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike."""
    attention = read_attention(settings, is_partial=True)
    mixer = replace(attention, rope=replace(attention.rope, interleaved=True) if attention.rope else None)
    biases = ("q", "k", "v") if settings.flag("attention_bias") else ()
    return (replace(read_layer(settings, mixer=mixer, biases=biases, is_fused=True), norms=NORMS),) * count


FAMILY = Family(
    name="glm4",
    architecture="Glm4ForCausalLM",
    absent={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-07,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "eos_token_id": [151329, 151336, 151338],
    },
    follows=frozenset({"attention_bias"}),
    layers=layers,
)
