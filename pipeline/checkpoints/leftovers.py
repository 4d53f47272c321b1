"""Tensors that no group holds: refused where leaving them out would change what the model says, else only named."""

import re
from collections.abc import Mapping

from pipeline.checkpoints.header import TensorEntry, brief

DECODER = re.compile(r"model\.|(layers|embed_tokens|norm|lm_head)\b")
"""The names of what computes the next token; a part of which nothing is known may be one too."""
BUFFERS = re.compile(
    r"(.*\.)?(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)"
    r"|(self_attn|attn|attention)\.(bias|masked_bias)|causal_mask|position_ids)"
)
"""Tables and masks that older versions of transformers saved, and that all readers compute from config.json."""
OTHER_PARTS = re.compile(
    r"model\.(visual|vision_tower|vision_model|multi_modal_projector|audio_tower|mtp)\..*"
    r"|(model\.)?layers\.\d+\.self_attn\.(attn\.|[kv]_proj\.)?(k|v|kv|q|prob)_scale"
)
"""For pictures, sound, drafting, and KV blocks in fewer bits than here."""
LAYER = re.compile(r"(?:model\.)*layers\.(\d{1,9})\.")
KINDS = (
    (r"lora_|\.base_layer\.|\.modules_to_save\.", "it belongs to an adapter: merge that into the weights first"),
    (
        r"scale|scales|zeros|zero_point|g_idx|absmax|quant|packed|weight_shape|qweight",
        "it belongs to quantised weights of which config.json says otherwise: check its quantization_config",
    ),
    (r"\.bias$|[qk]_norm\.", "this family has none there: check model_type and the other keys of config.json"),
    (r"", "config.json describes a model without it: check that both are of the same checkpoint"),
)


def counts(name: str) -> bool:
    """Whether the next token may depend on a tensor of this name."""
    return bool(DECODER.match(name)) and not OTHER_PARTS.fullmatch(name)


def leftovers(names: set[str], layers: int, tensors: Mapping[str, TensorEntry]) -> tuple[list[str], tuple[str, ...]]:
    """Return faults of the tensors that count though nothing computes with them, and the names of the others.

    What a text model of that family computes again by itself is in neither.
    """
    names = {name for name in names if not BUFFERS.fullmatch(name)}
    counting = {name for name in names if counts(name)}
    faults = [f"{tensors[name].file}: tensor {brief(name)} {_fault(name, layers)}" for name in sorted(counting)]
    return faults, tuple(sorted(names - counting))


def _fault(name: str, layers: int) -> str:
    if (match := LAYER.match(name)) and int(match[1]) >= layers:
        has = f"config.json has {layers} layers"
        return f"is of layer {match[1]}, but {has}; the folder mixes the files of two checkpoints"
    why = next(why for pattern, why in KINDS if re.search(pattern, name))
    return f"would be left out, and the model would say something else: {why}"
