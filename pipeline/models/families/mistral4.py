"""Mistral 4: DeepSeek-V3's layers, whose experts a softmax chooses, and whose queries grow behind the first context."""

from dataclasses import replace

from pipeline.models.expert_settings import read_grouped_experts
from pipeline.models.families import deepseek_v3
from pipeline.models.families.deepseek_v3 import latent_layers, read_latent_attention
from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layers import Layer
from pipeline.models.rope_settings import SHARE, read_query_growth, read_rope


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """All alike, unless the first ones have no experts."""
    turned_dim = settings.count("qk_rope_head_dim")
    head_dim = settings.count("qk_nope_head_dim") + turned_dim
    rope = read_rope(settings.with_absent({SHARE: turned_dim / head_dim}), head_dim, is_partial=True)
    if rope.channels != turned_dim:
        raise settings.error(SHARE, f"qk_rope_head_dim = {turned_dim} of {head_dim} channels", rope.channels / head_dim)
    mixer = read_latent_attention(settings, replace(rope, query_growth=read_query_growth(settings)))
    experts = read_grouped_experts(settings)
    routing = replace(experts.routing, scores="softmax", choice_bias=False, wide=False)
    return latent_layers(settings, [mixer] * count, replace(experts, routing=routing))


FAMILY = Family(
    name="mistral4",
    architecture="Mistral4ForCausalLM",
    absent={
        **deepseek_v3.FAMILY.absent,
        "kv_lora_rank": 256,
        "q_lora_rank": 1024,
        "qk_nope_head_dim": 64,
        "n_routed_experts": 128,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 0,
        "max_position_embeddings": 1048576,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 128.0,
            "original_max_position_embeddings": 8192,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    follows=deepseek_v3.FAMILY.follows,
    layers=layers,
)
