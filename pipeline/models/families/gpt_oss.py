"""gpt-oss: experts in every layer, a window in every other one, sinks in the softmax, and biases everywhere."""

from dataclasses import replace

from pipeline.models.families.family import Family
from pipeline.models.feed_forwards import Clamp, Experts, FeedForward, Routing
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer, read_windows
from pipeline.models.layers import ATTENTION_MATRICES, Layer
from pipeline.models.rope_settings import FULL, SLIDING


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for the window. What config.json says of the activation has no meaning."""
    attention = replace(read_attention(settings), sinks=True)
    assumed = [FULL if index % 2 else SLIDING for index in range(count)]
    windows = read_windows(settings, settings.optional_count("sliding_window"), assumed)
    clamp = Clamp(limit=settings.positive("swiglu_limit"), slope=settings.positive("swiglu_alpha"), offset=1.0)
    expert = FeedForward(size=settings.count("intermediate_size"), fused=True, interleaved=True, clamp=clamp)
    experts = Experts(
        count=settings.count("num_local_experts"),
        chosen=settings.count("num_experts_per_tok", at_most=settings.count("num_local_experts")),
        routing=Routing(scores="softmax of the chosen"),
        expert=expert,
        router="mlp.router",
        names=(("gate_up", "gate_up_proj"), ("down", "down_proj")),
        transposed=True,
    )
    biases = {"router", "gate_up", "down", *(ATTENTION_MATRICES if settings.flag("attention_bias") else ())}
    plain = [
        read_layer(settings, mixer=replace(attention, window=window), biases=biases, experts=experts)
        for window in windows
    ]
    return tuple(replace(layer, norm_style="wide") for layer in plain)


FAMILY = Family(
    name="gpt_oss",
    architecture="GptOssForCausalLM",
    absent={
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 201088,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "sliding_window": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "rope_theta": 150000.0,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
    follows=frozenset({"attention_bias", "layer_types"}),
    layers=layers,
)
