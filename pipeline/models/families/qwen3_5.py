"""Qwen3.5, 3.6 and 3.8, dense: gated delta nets, and full attention with an output gate in every fourth layer."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.models.families.family import Family, Wrapper
from pipeline.models.feed_forwards import Experts
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_kinds, read_layer
from pipeline.models.layers import Attention, DeltaNet, Layer
from pipeline.models.rope_settings import FULL
from pipeline.models.supported import unsupported

LINEAR = "linear_attention"


def hybrid_layers(settings: JsonObject, experts: Sequence[Experts | None], *, grouped: bool) -> tuple[Layer, ...]:
    """A layer for each of `experts`; None stands for a feed-forward of its own.

    All norms multiply by 1 + their weights, but for that inside the delta net.
    """
    if settings.text("hidden_act", "silu") not in ("silu", "swish"):  # the convolution has it, too
        raise unsupported(settings, "hidden_act")
    attention = replace(read_attention(settings, is_partial=True), query_key_norms="heads", gated=True)
    interval = settings.count("full_attention_interval")
    assumed = [LINEAR if (index + 1) % interval else FULL for index in range(len(experts))]
    mixers: dict[str, Attention | DeltaNet] = {FULL: attention, LINEAR: _delta_net(settings, grouped=grouped)}
    kinds = read_kinds(settings, assumed, mixers)
    return tuple(
        replace(read_layer(settings, mixer=mixers[kind], experts=one), norm_style="plus_one")
        for kind, one in zip(kinds, experts, strict=True)
    )


def _delta_net(settings: JsonObject, *, grouped: bool) -> DeltaNet:
    key_heads, value_heads = settings.count("linear_num_key_heads"), settings.count("linear_num_value_heads")
    if value_heads % key_heads:
        raise settings.error("linear_num_value_heads", f"a multiple of linear_num_key_heads = {key_heads}", value_heads)
    return DeltaNet(
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=settings.count("linear_key_head_dim"),
        value_dim=settings.count("linear_value_head_dim"),
        kernel=settings.count("linear_conv_kernel_dim"),
        grouped=grouped,
    )


ABSENT = {
    "max_position_embeddings": 32768,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
FAMILY = Family(
    name="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    absent={**ABSENT, "num_key_value_heads": 4},
    follows=frozenset({"attention_bias", "layer_types"}),
    layers=lambda settings, count: hybrid_layers(settings, [None] * count, grouped=False),
)
WRAPPER = Wrapper(name="qwen3_5", architecture="Qwen3_5ForConditionalGeneration", texts=("qwen3_5_text",), tied=False)
