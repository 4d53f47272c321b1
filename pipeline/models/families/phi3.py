"""Phi 3, 3.5 and 4: one matrix for queries, keys and values, and one for gate and up; some with LongRoPE."""

from dataclasses import replace

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import Layer


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike."""
    attention, window = read_attention(_renamed(settings), is_partial=True), settings.optional_count("sliding_window")
    mixer = replace(attention, window=window, fused=True)
    return (read_layer(settings, mixer=mixer, is_fused=True),) * count


def _renamed(settings: JsonObject) -> JsonObject:
    """Older files call LongRoPE "su" or "yarn"."""
    key = settings.first("rope_scaling", "rope_parameters")
    rope = settings.section(key)
    if rope.get(rope.first("rope_type", "type")) not in ("su", "yarn"):
        return settings
    return settings.replaced(key, {**rope.values, "rope_type": "longrope"})


FAMILY = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    absent={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
    layers=layers,
)
