"""DeepSeek-V3.2: as DeepSeek-V3, where each layer looks at positions that its indexer has chosen."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.models.families import deepseek_v3
from pipeline.models.families.deepseek_v3 import latent_layers, read_latent_attention, read_latest_experts
from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.latents import Indexer, LatentAttention
from pipeline.models.layer_settings import read_kinds
from pipeline.models.layers import Layer

INDEXED = "indexed_attention"


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for the first ones, which have no experts."""
    return indexed_layers(settings, [read_indexed_attention(settings, interleaved=False)] * count)


def indexed_layers(settings: JsonObject, mixers: Sequence[LatentAttention]) -> tuple[Layer, ...]:
    """A layer for each of these; the first ones have no experts."""
    read_kinds(settings, [INDEXED] * len(mixers), [INDEXED])
    return latent_layers(settings, mixers, read_latest_experts(settings))


def read_indexed_attention(settings: JsonObject, *, interleaved: bool) -> LatentAttention:
    """As `read_latent_attention`, with an indexer whose pairs of channels are neighbours if it is `interleaved`."""
    settings.count("q_lora_rank")  # it has queries of the indexer, too
    head_dim, turned_dim = settings.count("index_head_dim"), settings.count("qk_rope_head_dim")
    if head_dim < turned_dim:
        raise settings.error("index_head_dim", f"at least qk_rope_head_dim = {turned_dim}", head_dim)
    indexer = Indexer(heads=settings.count("index_n_heads"), head_dim=head_dim, interleaved=interleaved)
    return replace(read_latent_attention(settings), indexer=indexer, chosen=settings.count("index_topk"))


FAMILY = Family(
    name="deepseek_v32",
    architecture="DeepseekV32ForCausalLM",
    absent={
        **deepseek_v3.FAMILY.absent,
        "max_position_embeddings": 163840,
        "index_topk": 2048,
        "index_head_dim": 128,
        "index_n_heads": 64,
    },
    follows=deepseek_v3.FAMILY.follows | {"layer_types"},
    layers=layers,
)
