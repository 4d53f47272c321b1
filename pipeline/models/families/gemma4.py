"""Gemma 4, alone or inside a model that sees: full attention has other heads, whose keys may be the values.

Where there are experts, they stand beside the feed-forward, with norms of their own.
"""

from collections.abc import Mapping
from dataclasses import replace

from pipeline.models.families import gemma2
from pipeline.models.families.family import Family, Wrapper
from pipeline.models.feed_forwards import ExpertNorms, Experts, FeedForward, Routing
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_activation, read_attention, read_kinds, read_layer
from pipeline.models.layers import Layer
from pipeline.models.rope_settings import FULL, SLIDING
from pipeline.models.supported import unsupported

PATTERN = 6
REFUSED = ("hidden_size_per_layer_input", "num_kv_shared_layers")
OF_A_LAYER = {"head_dim", "num_key_value_heads"}
"""What `per_layer_config` may state of a layer."""
NORMS_OF_EXPERTS = ExpertNorms(
    before_experts="pre_feedforward_layernorm_2",
    after_experts="post_feedforward_layernorm_2",
    after_shared="post_feedforward_layernorm_1",
)


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """They are of two kinds, and the last has full attention, whatever config.json says."""
    for key in REFUSED:
        if settings.get(key):
            raise unsupported(settings, key)
    assumed = [SLIDING if (index + 1) % PATTERN else FULL for index in range(count)]
    kinds = [*read_kinds(settings, assumed, (FULL, SLIDING))[:-1], FULL]
    return tuple(_layer(settings, kind, index) for index, kind in enumerate(kinds))


def _layer(settings: JsonObject, kind: str, index: int) -> Layer:
    own = settings
    for key, value in _of_layer(settings, kind, index).items():
        own = own.replaced(key, value)
    attention = replace(
        read_attention(own, kind),
        scale=1.0,
        window=settings.count("sliding_window") if kind == SLIDING else None,
        query_key_norms="heads",
        value_norm=True,
        values_are_keys=kind == FULL and settings.flag("attention_k_eq_v"),
    )
    experts = _experts(settings) if settings.flag("enable_moe_block") else None
    layer = read_layer(settings, mixer=attention, activation="hidden_activation", experts=experts)
    return replace(layer, norms=gemma2.NORMS, norm_style="wide", scalar=True)


def _experts(settings: JsonObject) -> Experts:
    function = read_activation(settings, "hidden_activation")
    return Experts(
        count=settings.count("num_experts"),
        chosen=settings.count("top_k_experts", at_most=settings.count("num_experts")),
        routing=Routing(),
        expert=FeedForward(size=settings.count("moe_intermediate_size"), activation=function),
        shared=FeedForward(size=settings.count("intermediate_size"), activation=function),
        norms=NORMS_OF_EXPERTS,
        router="router.proj",
        scales="router",
        module="experts",
        shared_module="mlp",
    )


def _of_layer(settings: JsonObject, kind: str, index: int) -> Mapping[str, object]:
    """Return what differs from the other layers: transformers saves it by layer, published files by kind."""
    if settings.get("per_layer_config") is not None:
        own = settings.section("per_layer_config").section(str(index))
        if other := own.values.keys() - OF_A_LAYER:
            raise unsupported(own, min(other))
        return own.values
    if kind == SLIDING:
        return {}
    heads = settings.get("num_global_key_value_heads") if settings.flag("attention_k_eq_v") else None
    stated = {"head_dim": settings.get("global_head_dim"), "num_key_value_heads": heads}
    return {key: value for key, value in stated.items() if value is not None}


FAMILY = Family(
    name="gemma4_text",
    architecture="Gemma4ForCausalLM",
    absent={
        **gemma2.FAMILY.absent,
        "vocab_size": 262144,
        "num_hidden_layers": 30,
        "max_position_embeddings": 131072,
        "sliding_window": 512,
        "global_head_dim": 512,
        "hidden_size_per_layer_input": 256,
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
            FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
        },
        "final_logit_softcapping": None,
    },
    follows=gemma2.FAMILY.follows | {"per_layer_config"},
    layers=layers,
    outside=gemma2.outside,
)
WRAPPER = Wrapper(name="gemma4", architecture="Gemma4ForConditionalGeneration", texts=("gemma4_text",), tied=True)
