"""DeepSeek-V3 and R1: multi-head latent attention, neighbouring channels turned in pairs, dense layers first."""

from dataclasses import replace

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_layer
from pipeline.models.layers import LatentAttention, Layer
from pipeline.models.rope_settings import read_rope, read_scale_growth
from pipeline.models.supported import unsupported

LATENT_EPSILON = 1e-6
"""What norms of latents add, whatever rms_norm_eps says."""


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """The first `first_k_dense_replace` are dense, the others have experts."""
    if settings.index("first_k_dense_replace") < count:
        raise unsupported(settings, "first_k_dense_replace")
    mixer = read_latent_attention(settings)
    biases = ("q_a", "kv_a", "o") if settings.flag("attention_bias") else ()
    return (read_layer(settings, mixer=mixer, biases=biases),) * count


def read_latent_attention(settings: JsonObject) -> LatentAttention:
    """Of the sizes and the rotary embedding that config.json states. Raises `ConfigError` for what is not supported."""
    heads = settings.count("num_attention_heads")
    if settings.get("num_key_value_heads") is not None and settings.count("num_key_value_heads") != heads:
        raise settings.error(
            "num_key_value_heads", f"{heads} as num_attention_heads", settings.get("num_key_value_heads")
        )
    rank, still_dim = settings.count("kv_lora_rank"), settings.count("qk_nope_head_dim")
    turned_dim = settings.count("qk_rope_head_dim")
    rope = replace(read_rope(settings, turned_dim), interleaved=settings.flag("rope_interleave"))
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
        "first_k_dense_replace": 3,
        "max_position_embeddings": 4096,
        "rope_interleave": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    follows=frozenset({"attention_bias"}),
    layers=layers,
)
