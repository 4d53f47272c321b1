"""Gemma 3, alone or inside a model that sees: Gemma 2 with norms of heads, a rope for each kind, and no caps."""

from dataclasses import replace

from pipeline.models.families import gemma2
from pipeline.models.families.family import Family, Wrapper
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_kinds, read_layer
from pipeline.models.layers import Attention, Layer
from pipeline.models.rope_settings import FULL, LOCAL_BASE, SLIDING
from pipeline.models.supported import unsupported


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """They are of two kinds, with full attention every sixth time, or as `sliding_window_pattern` says."""
    if settings.get("attn_logit_softcapping") is not None:  # transformers reads it, and computes without it
        raise unsupported(settings, "attn_logit_softcapping")
    pattern = settings.count("sliding_window_pattern")
    assumed = [SLIDING if (index + 1) % pattern else FULL for index in range(count)]
    kinds = read_kinds(settings, assumed, (FULL, SLIDING))
    mixers = {kind: _attention(settings, kind) for kind in {*kinds}}
    plain = [read_layer(settings, mixer=mixers[kind], activation="hidden_activation") for kind in kinds]
    return tuple(replace(layer, norms=gemma2.NORMS, norm_style="plus_one") for layer in plain)


def _attention(settings: JsonObject, kind: str) -> Attention:
    return replace(
        read_attention(settings, kind),
        scale=settings.positive("query_pre_attn_scalar") ** -0.5,
        window=settings.count("sliding_window") if kind == SLIDING else None,
        query_key_norms="heads",
    )


FAMILY = Family(
    name="gemma3_text",
    architecture="Gemma3ForCausalLM",
    absent={
        **gemma2.FAMILY.absent,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        LOCAL_BASE: 10_000.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    follows=gemma2.FAMILY.follows,
    layers=layers,
    outside=gemma2.outside,
)
WRAPPER = Wrapper(
    name="gemma3",
    architecture="Gemma3ForConditionalGeneration",
    texts=("gemma3_text",),
    tied=True,
    ignored=frozenset({"final_logit_softcapping"}),
)
