"""Tensors that no group holds: refused where leaving them out would change what the model says, else only named."""

import re
from collections.abc import Mapping

from pipeline.checkpoints.header import TensorEntry, brief

DECODER = re.compile(r"(model|language_model)\.|(layers|norm|lm_head)\b|embed_tokens|per_layer_")
"""The names of what computes the next token; a part of which nothing is known may be one too."""
BUFFERS = re.compile(
    r"(.*\.)?(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)"
    r"|(self_attn|attn|attention)\.(bias|masked_bias)|causal_mask|position_ids)"
)
"""Tables and masks that older versions of transformers saved, and that all readers compute from config.json."""
PREFIX = r"(?:(?:model|language_model)\.)*"
PARTS = {
    "vision tower": r"(visual|vision_tower|vision_model|embed_vision|multi_modal_projector|patch_merger)\..*",
    "audio tower": r"(audio_tower|embed_audio)\..*",
    "layers that draft": r"mtp\..*",
}
"""What may be around the decoder, for pictures, sound and drafting, each with the names of its modules."""
OTHER_PARTS = re.compile(
    rf"{PREFIX}({'|'.join(PARTS.values())}"
    r"|layers\.\d+\.self_attn\.(attn\.|[kv]_proj\.)?(k|v|kv|q|prob)_scale)"
)
"""These, and what is for KV blocks in fewer bits than here."""
LAYER = re.compile(rf"{PREFIX}layers\.(\d{{1,9}})\.")
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


def leftovers(
    names: set[str], layers: int, tensors: Mapping[str, TensorEntry], drafting_layers: int = 0
) -> tuple[list[str], tuple[str, ...]]:
    """Return faults of the tensors that count though nothing computes with them, and the names of the others.

    What a text model of that family computes again by itself is in neither. `drafting_layers` lie behind the others.
    """
    names = {name for name in names if not BUFFERS.fullmatch(name)}
    drafting = range(layers, layers + drafting_layers)
    counting = {name for name in names if counts(name) and _layer(name) not in drafting}
    faults = [f"{tensors[name].file}: tensor {brief(name)} {_fault(name, layers)}" for name in sorted(counting)]
    return faults, tuple(sorted(names - counting))


def other_part(name: str) -> str | None:
    """Which of `PARTS` a tensor that is left out is of, if it is of any."""
    if part := next((part for part, modules in PARTS.items() if re.fullmatch(PREFIX + modules, name)), None):
        return part
    return "layers that draft" if _layer(name) is not None and counts(name) else None


def _layer(name: str) -> int | None:
    match = LAYER.match(name)
    return int(match[1]) if match else None


def _fault(name: str, layers: int) -> str:
    if (layer := _layer(name)) is not None and layer >= layers:
        has = f"config.json has {layers} layers"
        return f"is of layer {layer}, but {has}; the folder mixes the files of two checkpoints"
    why = next(why for pattern, why in KINDS if re.search(pattern, name))
    return f"would be left out, and the model would say something else: {why}"
