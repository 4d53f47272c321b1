"""Qwen1.5 and Qwen2 with experts: as Qwen2, but most layers have experts, one of them shared by all tokens."""

from dataclasses import replace

from pipeline.models import expert_settings
from pipeline.models.expert_settings import SHARED_SIZE, read_sparse_experts
from pipeline.models.families import qwen2
from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer, read_windows
from pipeline.models.layers import Layer
from pipeline.models.rope_settings import FULL, SLIDING


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for the window, and for those that have no experts."""
    attention, biases = read_attention(settings), ("q", "k", "v") if settings.flag("qkv_bias", default=True) else ()
    windows, experts = _windows(settings, count), read_sparse_experts(settings, count, SHARED_SIZE)
    return tuple(
        read_layer(settings, mixer=replace(attention, window=window), biases=biases, experts=some)
        for window, some in zip(windows, experts, strict=True)
    )


def _windows(settings: JsonObject, count: int) -> list[int | None]:
    """Other than in Qwen2, windows are in every other layer, and before `max_window_layers`."""
    if not settings.flag("use_sliding_window"):
        return read_windows(settings, None, [FULL] * count)
    last = settings.index("max_window_layers")
    assumed = [SLIDING if index % 2 == 0 and index < last else FULL for index in range(count)]
    return read_windows(settings, settings.optional_count("sliding_window"), assumed)


FAMILY = Family(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    absent={
        **qwen2.FAMILY.absent,
        **expert_settings.ABSENT,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        SHARED_SIZE: 5632,
    },
    follows=qwen2.FAMILY.follows,
    layers=layers,
)
