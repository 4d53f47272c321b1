"""Qwen3 with experts: as Qwen3, but most layers have experts in place of their feed-forward."""

from dataclasses import replace

from pipeline.models.families import qwen3
from pipeline.models.families.family import Family
from pipeline.models.feed_forwards import Experts, FeedForward, Routing
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import (
    count_of_experts,
    read_activation,
    read_attention,
    read_late_windows,
    read_layer,
)
from pipeline.models.layers import Layer


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for the window, and for those that have no experts."""
    attention, windows = read_attention(settings), read_late_windows(settings, count)
    mixers = [replace(attention, window=window, query_key_norms="heads") for window in windows]
    experts = Experts(
        count=count_of_experts(settings),
        chosen=settings.count("num_experts_per_tok", at_most=count_of_experts(settings)),
        routing=Routing(normalized=settings.flag("norm_topk_prob")),
        expert=FeedForward(size=settings.count("moe_intermediate_size"), activation=read_activation(settings)),
    )
    stated, step = settings.get("mlp_only_layers"), settings.count("decoder_sparse_step")
    dense = stated if isinstance(stated, list) else []
    routed = [index not in dense and (index + 1) % step == 0 for index in range(count)]
    return tuple(
        read_layer(settings, mixer=mixer, experts=experts if one else None)
        for mixer, one in zip(mixers, routed, strict=True)
    )


FAMILY = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    absent={
        **qwen3.FAMILY.absent,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "moe_intermediate_size": 768,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    follows=qwen3.FAMILY.follows,
    layers=layers,
)
