"""DeepSeek-V2 and V2-Lite: latent attention, and experts that a softmax chooses, in V2 from the groups of the best."""

from dataclasses import replace

from pipeline.models.expert_settings import read_grouped_experts
from pipeline.models.families import deepseek_v3
from pipeline.models.families.deepseek_v3 import latent_layers, read_latent_attention, refuse_others
from pipeline.models.families.family import Family
from pipeline.models.feed_forwards import Experts
from pipeline.models.json_object import JsonObject
from pipeline.models.layers import Layer
from pipeline.models.supported import unsupported

GREEDY, GROUPED = "greedy", "group_limited_greedy"
COMPUTED = {"scoring_func": "softmax", "moe_layer_freq": 1, "norm_topk_prob": False}
"""What published files state of experts, and what alone is computed."""


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for the first ones, which have no experts."""
    return latent_layers(settings, [read_latent_attention(settings)] * count, _experts(settings))


def _experts(settings: JsonObject) -> Experts:
    refuse_others(settings, COMPUTED)
    if (method := settings.text("topk_method")) not in (GREEDY, GROUPED):
        raise unsupported(settings, "topk_method")
    if method == GREEDY:
        settings = settings.replaced("n_group", 1).replaced("topk_group", 1)
    experts = read_grouped_experts(settings)
    routing = replace(experts.routing, scores="softmax", normalized=False, choice_bias=False, best=1)
    return replace(experts, routing=routing)


FAMILY = Family(
    name="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    absent={
        **deepseek_v3.FAMILY.absent,
        "max_position_embeddings": 2048,
        "moe_intermediate_size": 1407,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "topk_method": GREEDY,
        "first_k_dense_replace": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    follows=deepseek_v3.FAMILY.follows,
    layers=layers,
)
