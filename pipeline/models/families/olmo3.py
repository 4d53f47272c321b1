"""OLMo 3: OLMo 2 with a window in three of four layers, and a rope for each kind of layer."""

from dataclasses import replace

from pipeline.models.families import olmo2
from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_kinds
from pipeline.models.layers import Layer
from pipeline.models.rope_settings import FULL, SLIDING


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """They are of two kinds."""
    assumed = [SLIDING if (index + 1) % 4 else FULL for index in range(count)]
    kinds = read_kinds(settings, assumed, (FULL, SLIDING))
    window = settings.count("sliding_window")
    mixers = {
        kind: replace(read_attention(settings, kind), window=window if kind == SLIDING else None) for kind in {*kinds}
    }
    return tuple(olmo2.layer_of(settings, mixers[kind]) for kind in kinds)


FAMILY = Family(
    name="olmo3",
    architecture="Olmo3ForCausalLM",
    absent={**olmo2.FAMILY.absent, "rope_theta": 500_000.0, "sliding_window": 4096},
    follows=frozenset({"attention_bias", "layer_types"}),
    layers=layers,
)
