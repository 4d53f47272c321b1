"""Ministral 3: Mistral's layers with YaRN, whose queries grow with the position behind the original context."""

from dataclasses import replace

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import Layer
from pipeline.models.rope_settings import read_query_growth


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike."""
    attention = read_attention(settings)
    rope = replace(attention.rope, query_growth=read_query_growth(settings)) if attention.rope else None
    mixer = replace(attention, rope=rope, window=settings.optional_count("sliding_window"))
    return (read_layer(settings, mixer=mixer),) * count


FAMILY = Family(
    name="ministral3",
    architecture="Ministral3ForCausalLM",
    absent={
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    layers=layers,
)
