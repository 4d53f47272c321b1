"""GLM-5: as DeepSeek-V3.2, where some layers look at the positions that the indexer of a layer before has chosen."""

from dataclasses import replace

from pipeline.models.families import deepseek_v32
from pipeline.models.families.deepseek_v32 import indexed_layers, read_indexed_attention
from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layers import Layer
from pipeline.models.supported import unsupported

FULL, SHARED = "full", "shared"


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for the first ones, which have no experts, and for those without an indexer."""
    full = read_indexed_attention(settings, interleaved=True)
    mixers = {FULL: full, SHARED: replace(full, indexer=None)}
    return indexed_layers(settings, [mixers[kind] for kind in _indexer_kinds(settings, count)])


def _indexer_kinds(settings: JsonObject, count: int) -> list[str]:
    """Which layers have an indexer: as a list states it, as a pattern of letters, or from a layer on each so many."""
    key = settings.first("indexer_types", "index_topk_pattern")
    kinds = settings.get(key)
    if kinds is None:
        step, first = settings.count("index_topk_freq"), settings.index("index_skip_topk_offset")
        return [SHARED if max(index - first + 1, 0) % step else FULL for index in range(count)]
    if isinstance(kinds, str):
        kinds = [{"F": FULL, "S": SHARED}.get(letter) for letter in kinds]
    known = isinstance(kinds, list) and {*map(str, kinds)} <= {FULL, SHARED}
    if not isinstance(kinds, list) or not known or len(kinds) != count or kinds[0] != FULL:
        raise unsupported(settings, key)
    return kinds


FAMILY = Family(
    name="glm_moe_dsa",
    architecture="GlmMoeDsaForCausalLM",
    absent={
        **deepseek_v32.FAMILY.absent,
        "q_lora_rank": 2048,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "n_group": 1,
        "topk_group": 1,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 202752,
        "index_n_heads": 32,
        "index_topk_freq": 1,
        "index_skip_topk_offset": 2,
    },
    follows=deepseek_v32.FAMILY.follows,
    layers=layers,
)
