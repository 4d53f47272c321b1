"""What a test of a family is made of: a tiny random model, and what to change in its config.json."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from support import tiny_models

SHAPE = {
    "vocab_size": tiny_models.VOCABULARY_SIZE,
    "hidden_size": 48,
    "intermediate_size": 104,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MIXED = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
YARN = {
    "rope_type": "yarn",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
    "mscale": 2.0,
    "mscale_all_dim": 0.5,
    "truncate": False,
    "original_max_position_embeddings": 16,
}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.3, 2.0],
    "long_factor": [1.0, 4.0, 9.0],
    "partial_rotary_factor": 0.43,
}
EVEN_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 9,
}
"""Latent attention of sizes that all formats can store."""

PIXTRAL: dict[str, Any] = {
    "model_type": "pixtral",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 8,
    "image_size": 32,
    "patch_size": 16,
}
QWEN_TOWER: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 48,
    "num_position_embeddings": 16,
}
"""Towers that see, as small as they may be; they are not computed."""


@dataclass(frozen=True)
class Case:
    """A config of transformers, and for each of its flags another value, by the path of its key in config.json.

    `older` says what the spelling of transformers 4 has in place of the lists that follow from a number. Of what it
    knew already, it spells rotary embedding in another way. Matrices have the standard `deviation`: with 0.25, two ways
    in which transformers computes a delta net differ by 4e-4. Experts of a layer may be `stacked` in the checkpoint.
    """

    config: Callable[[], Any]
    changes: Mapping[str, object]
    older: Mapping[str, object] = field(default_factory=dict)
    rope_is_older: bool = True
    deviation: float = 0.25
    stacked: bool = False


def older(stated: dict[str, Any], case: Case) -> dict[str, Any]:
    """The same config.json as transformers 4 spells it: `rope_theta` and `rope_scaling`, and `torch_dtype`."""
    if "text_config" in stated:
        return {**_dtype(stated), "text_config": older(stated["text_config"], case)}
    settings = {**_dtype(stated), **case.older}
    if not case.rope_is_older:
        return settings
    rope = dict(settings.pop("rope_parameters"))
    kinds = {kind: dict(rope.pop(kind)) for kind in ("full_attention", "sliding_attention") if kind in rope}
    rope = kinds.get("full_attention", rope)
    settings["rope_theta"] = rope.pop("rope_theta")
    if "sliding_attention" in kinds:
        settings["rope_local_base_freq"] = kinds["sliding_attention"]["rope_theta"]
    if "partial_rotary_factor" in rope:
        settings["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    rope["type"] = rope.pop("rope_type")
    settings["rope_scaling"] = None if rope["type"] == "default" else rope
    return settings


def _dtype(stated: dict[str, Any]) -> dict[str, Any]:
    return {"torch_dtype" if key == "dtype" else key: value for key, value in stated.items()}
