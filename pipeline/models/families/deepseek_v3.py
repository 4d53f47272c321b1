"""DeepSeek-V3 and R1: latent attention, and behind the first layers experts that are chosen from groups."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.models.expert_settings import behind_dense, read_grouped_experts
from pipeline.models.families.family import Family
from pipeline.models.feed_forwards import Experts
from pipeline.models.json_object import JsonObject
from pipeline.models.latents import LatentAttention
from pipeline.models.layer_settings import read_layer
from pipeline.models.layers import Layer
from pipeline.models.rope_settings import read_rope, read_scale_growth
from pipeline.models.ropes import Rope
from pipeline.models.supported import unsupported

COMPUTED = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1}
"""What published files state of experts, and what alone is computed."""
DENSE, SPARSE = "dense", "sparse"
LATENT_EPSILON = 1e-6
"""What norms of latents add, whatever rms_norm_eps says."""


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for the first ones, which have no experts."""
    return latent_layers(settings, [read_latent_attention(settings)] * count, read_latest_experts(settings))


def latent_layers(settings: JsonObject, mixers: Sequence[LatentAttention], experts: Experts) -> tuple[Layer, ...]:
    """A layer for each of these; the first ones have no experts: as many as `first_k_dense_replace` says, or a list."""
    count, kinds = len(mixers), settings.get("mlp_layer_types")
    if kinds is not None:
        dense = kinds.count(DENSE) if isinstance(kinds, list) else 0
        if kinds != [DENSE] * dense + [SPARSE] * (count - dense):
            raise unsupported(settings, "mlp_layer_types")
        settings = settings.replaced("first_k_dense_replace", dense)
    biases = ("q_a", "kv_a", "o") if settings.flag("attention_bias") else ()
    plain = read_layer(settings, mixer=mixers[0], biases=biases)
    alike = behind_dense(settings, plain, replace(plain, feed_forward=experts), count)
    return tuple(replace(layer, mixer=mixer) for layer, mixer in zip(alike, mixers, strict=True))


def read_latest_experts(settings: JsonObject) -> Experts:
    """As `read_grouped_experts`, but that what published files ask for beside that is refused."""
    refuse_others(settings, COMPUTED)
    return read_grouped_experts(settings)


def refuse_others(settings: JsonObject, computed: Mapping[str, object]) -> None:
    """Refuse what other values of these keys ask for."""
    for key, value in computed.items():
        if settings.get(key) not in (None, value):
            raise unsupported(settings, key)


def read_latent_attention(settings: JsonObject, rope: Rope | None = None) -> LatentAttention:
    """Of the sizes and the rotary embedding that config.json states, unless another one is given.

    Raises `ConfigError` for what is not supported.
    """
    heads = settings.count("num_attention_heads")
    if settings.get("num_key_value_heads") is not None and settings.count("num_key_value_heads") != heads:
        raise settings.error(
            "num_key_value_heads", f"{heads} as num_attention_heads", settings.get("num_key_value_heads")
        )
    rank, still_dim = settings.count("kv_lora_rank"), settings.count("qk_nope_head_dim")
    turned_dim = settings.count("qk_rope_head_dim")
    rope = replace(rope or read_rope(settings, turned_dim), interleaved=settings.flag("rope_interleave"))
    return LatentAttention(
        heads=heads,
        kv_heads=1,
        head_dim=turned_dim + rank,
        scale=(still_dim + turned_dim) ** -0.5 * read_scale_growth(settings),
        rope=rope,
        rank=rank,
        query_rank=settings.optional_count("q_lora_rank"),
        still_dim=still_dim,
        output_dim=settings.count("v_head_dim"),
        latent_epsilon=LATENT_EPSILON,
    )


FAMILY = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    absent={
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3,
        "max_position_embeddings": 4096,
        "rope_interleave": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    follows=frozenset({"attention_bias"}),
    layers=layers,
)
