"""Qwen2 and Qwen2.5, dense: queries, keys and values have biases, and some layers may have a sliding window."""

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_feed_forward, read_norm_epsilon, read_windows
from pipeline.models.layers import Layer


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for the window."""
    return tuple(
        Layer(
            attention=read_attention(settings, window=window, biases=("q", "k", "v")),
            feed_forward=read_feed_forward(settings),
            norm_epsilon=read_norm_epsilon(settings),
        )
        for window in read_windows(settings, count)
    )


FAMILY = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    absent={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    # transformers gives it its three biases whatever attention_bias says, which is no promise of a fourth one.
    follows=frozenset({"attention_bias", "layer_types"}),
    layers=layers,
)
