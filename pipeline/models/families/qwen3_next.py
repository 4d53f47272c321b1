"""Qwen3-Next, of which layers without experts are read: Qwen3.5's, whose delta nets are stored in groups of heads."""

from pipeline.models.families.family import Family
from pipeline.models.families.qwen3_5 import ABSENT, hybrid_layers
from pipeline.models.json_object import JsonObject
from pipeline.models.layers import Layer
from pipeline.models.supported import unsupported


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Dense all of them: `mlp_only_layers` names those, or there are no experts."""
    step, stated = settings.count("decoder_sparse_step"), settings.get("mlp_only_layers") or []
    dense = stated if isinstance(stated, list) else []
    sparse = [index for index in range(count) if index not in dense and (index + 1) % step == 0]
    if sparse and settings.index("num_experts"):
        raise unsupported(settings, "num_experts")
    return hybrid_layers(settings, count, grouped=True)


FAMILY = Family(
    name="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    absent={**ABSENT, "num_key_value_heads": 2, "num_experts": 512, "decoder_sparse_step": 1},
    follows=frozenset({"attention_bias", "layer_types"}),
    layers=layers,
)
