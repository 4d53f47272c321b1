"""Gemma 2: norms around each half, capped scores and logits, and a window in every other layer."""

from dataclasses import replace

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer, read_windows
from pipeline.models.layers import Layer, Norms
from pipeline.models.outside import Outside
from pipeline.models.rope_settings import FULL, SLIDING

NORMS = Norms(
    after_mixer="post_attention_layernorm",
    before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm",
)


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for the window."""
    attention = replace(
        read_attention(settings),
        scale=settings.positive("query_pre_attn_scalar") ** -0.5,
        softcap=settings.optional_positive("attn_logit_softcapping"),
    )
    assumed = [FULL if index % 2 else SLIDING for index in range(count)]
    windows = read_windows(settings, settings.optional_count("sliding_window"), assumed)
    mixers = [replace(attention, window=window) for window in windows]
    plain = [read_layer(settings, mixer=mixer, activation="hidden_activation") for mixer in mixers]
    return tuple(replace(layer, norms=NORMS, norm_style="plus_one") for layer in plain)


def outside(settings: JsonObject) -> Outside:
    """The embedding is scaled by the root of its size, and logits may be capped."""
    return Outside(
        embedding_multiplier=settings.count("hidden_size") ** 0.5,
        logits_softcap=settings.optional_positive("final_logit_softcapping"),
    )


FAMILY = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    absent={
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    follows=frozenset({"attention_bias", "layer_types"}),
    layers=layers,
    outside=outside,
)
