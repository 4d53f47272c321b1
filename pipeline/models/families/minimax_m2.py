"""MiniMax M2: norms of whole queries and keys, of which some turn, and experts that sigmoids and a bias choose."""

from dataclasses import replace

from pipeline.models.expert_settings import read_experts
from pipeline.models.families.family import Family
from pipeline.models.families.mixtral import BLOCK, NAMES
from pipeline.models.feed_forwards import Routing
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.layers import Layer
from pipeline.models.rope_settings import SHARE

TURNED = "rotary_dim"
"""As published files say how many channels of a head turn."""


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike."""
    if settings.get(SHARE) is None and settings.get(TURNED) is not None:
        settings = settings.replaced(SHARE, settings.count(TURNED) / settings.count("head_dim"))
    attention = replace(read_attention(settings, is_partial=True), query_key_norms="projection")
    routing = Routing(scores="sigmoid", choice_bias=True)
    experts = replace(
        read_experts(settings, routing=routing, size="intermediate_size"),
        router=f"{BLOCK}.gate",
        choice_bias=f"{BLOCK}.e_score_correction_bias",
        module=f"{BLOCK}.experts",
        names=NAMES,
    )
    return (read_layer(settings, mixer=attention, experts=experts),) * count


FAMILY = Family(
    name="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    absent={
        "vocab_size": 200064,
        "hidden_size": 3072,
        "intermediate_size": 1536,
        "num_hidden_layers": 62,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 196608,
        "rope_theta": 5_000_000.0,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
        "bos_token_id": 200034,
        "eos_token_id": 200020,
    },
    layers=layers,
)
