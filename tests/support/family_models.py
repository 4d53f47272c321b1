"""A tiny random model of each family whose layers differ from Llama's, with what to change in its config.json.

The sizes are odd, and so chosen that every flag changes what the model says.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from support import tiny_models

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import (
        Gemma2Config,
        Gemma3Config,
        Gemma3TextConfig,
        Gemma4TextConfig,
        Glm4Config,
        GraniteConfig,
        Ministral3Config,
        MinistralConfig,
        Mistral3Config,
        Olmo2Config,
        Olmo3Config,
        Phi3Config,
        Qwen2Config,
        Qwen3Config,
        SmolLM3Config,
    )

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


@dataclass(frozen=True)
class Case:
    """A config of transformers, and for each of its flags another value, by the path of its key in config.json.

    `older` says what the spelling of transformers 4 has in place of the lists that follow from a number. Of what it
    knew already, it spells rotary embedding in another way.
    """

    config: Callable[[], Any]
    changes: Mapping[str, object]
    older: Mapping[str, object] = field(default_factory=dict)
    rope_is_older: bool = True


GEMMA = {**SHAPE, "head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 6, "final_logit_softcapping": 9.0}
BY_KIND = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
OF_GEMMA3 = {
    "layer_types": ["full_attention"] * 4,
    "sliding_window": 9,
    "query_pre_attn_scalar": 20,
    "final_logit_softcapping": None,
    "hidden_activation": "silu",
    "rope_parameters.full_attention.rope_theta": 90.0,
    "rope_parameters.full_attention.factor": 1.5,
    "rope_parameters.sliding_attention.rope_theta": 90.0,
}
UNCAPPED = {"final_logit_softcapping": None}
"""Inside a model that sees transformers has no cap, whatever config.json says."""
PROPORTIONAL = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}

CASES: dict[str, Case] = {
    "gemma2": Case(
        lambda: Gemma2Config(**GEMMA, attn_logit_softcapping=3.0, attention_bias=True),
        {
            "layer_types": MIXED,
            "sliding_window": 9,
            "attention_bias": False,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "hidden_activation": "silu",
            "rms_norm_eps": 0.5,
            "rope_parameters.rope_theta": 90.0,
        },
        {"layer_types": None},
    ),
    "gemma3_text": Case(
        lambda: Gemma3TextConfig(**GEMMA, sliding_window_pattern=3, rope_parameters=copy.deepcopy(BY_KIND)),
        OF_GEMMA3,
        {"layer_types": None, "sliding_window_pattern": 3},
    ),
    "gemma3": Case(
        lambda: Gemma3Config(
            text_config=Gemma3TextConfig(
                **{**GEMMA, **UNCAPPED}, layer_types=MIXED, rope_parameters=copy.deepcopy(BY_KIND)
            ),
            vision_config={
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
            },
            mm_tokens_per_image=1,
        ),
        {f"text_config.{key}": value for key, value in OF_GEMMA3.items() if key not in UNCAPPED},
    ),
    "gemma4_text": Case(
        lambda: Gemma4TextConfig(
            **{**SHAPE, "head_dim": 10, "sliding_window": 6, "final_logit_softcapping": 9.0},
            layer_types=[*MIXED[:3], "full_attention"],
            global_head_dim=16,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            attention_bias=True,
            hidden_size_per_layer_input=0,
            rope_parameters=copy.deepcopy(PROPORTIONAL),
        ),
        {
            "sliding_window": 9,
            "attention_k_eq_v": False,
            "attention_bias": False,
            "final_logit_softcapping": None,
            "hidden_activation": "silu",
            "rope_parameters.full_attention.rope_theta": 90.0,
            "rope_parameters.full_attention.partial_rotary_factor": 0.25,
            "rope_parameters.sliding_attention.rope_theta": 90.0,
        },
        {"per_layer_config": None, "global_head_dim": 16, "num_global_key_value_heads": 1},
        rope_is_older=False,
    ),
    "glm4": Case(
        lambda: Glm4Config(**SHAPE, head_dim=20, attention_bias=True, rope_parameters={"rope_theta": 300.0}),
        {
            "attention_bias": False,
            "head_dim": 12,
            "rope_parameters.partial_rotary_factor": 0.2,
            "rope_parameters.rope_theta": 90.0,
        },
    ),
    "olmo2": Case(
        lambda: Olmo2Config(**SHAPE, attention_bias=True),
        {"attention_bias": False, "rms_norm_eps": 0.5, "rope_parameters.rope_theta": 90.0},
    ),
    "olmo3": Case(
        lambda: Olmo3Config(**SHAPE, sliding_window=6, rope_parameters={"full_attention": {**YARN, "truncate": True}}),
        {
            "layer_types": MIXED,
            "sliding_window": 9,
            "rope_parameters.full_attention.factor": 1.5,
            "rope_parameters.sliding_attention.rope_theta": 90.0,
        },
        {"layer_types": None},
    ),
    "qwen2": Case(
        lambda: Qwen2Config(
            **SHAPE, use_sliding_window=True, sliding_window=5, max_window_layers=2, rope_parameters=dict(YARN)
        ),
        {
            "layer_types": MIXED,
            "sliding_window": 7,
            "rms_norm_eps": 0.5,
            **{f"rope_parameters.{key}": 1.5 for key in ("rope_theta", "factor", "beta_fast", "beta_slow", "mscale")},
            "rope_parameters.original_max_position_embeddings": 12,
            "rope_parameters.truncate": True,
        },
        {"layer_types": None},
    ),
    "qwen3": Case(
        lambda: Qwen3Config(
            **SHAPE, head_dim=10, attention_bias=True, use_sliding_window=True, sliding_window=5, layer_types=MIXED
        ),
        {"layer_types": ["full_attention"] * 4, "sliding_window": 9, "attention_bias": False},
    ),
    "ministral": Case(
        lambda: MinistralConfig(**SHAPE, head_dim=10, sliding_window=6, layer_types=MIXED),
        {"layer_types": ["full_attention"] * 4, "sliding_window": 7, "head_dim": 12},
    ),
    "ministral3": Case(
        lambda: Ministral3Config(
            **SHAPE, head_dim=14, sliding_window=21, rope_parameters={**YARN, "llama_4_scaling_beta": 0.7}
        ),
        {
            "sliding_window": None,
            "rope_parameters.llama_4_scaling_beta": 0.2,
            "rope_parameters.factor": 4.0,
            "rope_parameters.original_max_position_embeddings": 10,
        },
    ),
    "mistral3": Case(
        lambda: Mistral3Config(
            text_config={
                **SHAPE,
                "model_type": "ministral3",
                "head_dim": 14,
                "sliding_window": None,
                "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.7},
            },
            vision_config={
                "model_type": "pixtral",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "head_dim": 8,
                "image_size": 32,
                "patch_size": 16,
            },
            tie_word_embeddings=False,
        ),
        {"text_config.rope_parameters.llama_4_scaling_beta": 0.2, "text_config.sliding_window": 5},
    ),
    "phi3": Case(
        lambda: Phi3Config(
            **{**SHAPE, "hidden_size": 56}, original_max_position_embeddings=50, sliding_window=9, rope_parameters=LONG
        ),
        {
            "sliding_window": 7,
            "original_max_position_embeddings": 20,
            "rope_parameters": {
                **LONG,
                "partial_rotary_factor": 0.3,
                "short_factor": LONG["short_factor"][:2],
                "long_factor": LONG["long_factor"][:2],
            },
            "rope_parameters.short_factor": [1.0, 1.0, 1.0],
            "rope_parameters.long_factor": [1.0, 1.0, 1.0],
            "rope_parameters.rope_theta": 100.0,
        },
    ),
    "granite": Case(
        lambda: GraniteConfig(
            **SHAPE,
            attention_bias=True,
            mlp_bias=True,
            embedding_multiplier=3.0,
            attention_multiplier=0.6,
            residual_multiplier=0.4,
            logits_scaling=2.0,
        ),
        {
            "embedding_multiplier": 1.0,
            "attention_multiplier": 0.25,
            "residual_multiplier": 0.5,
            "logits_scaling": 4.0,
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_act": "relu2",
        },
    ),
    "smollm3": Case(
        lambda: SmolLM3Config(**SHAPE, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=6),
        {
            "no_rope_layers": [1, 1, 1, 1],
            "sliding_window": 7,
            "layer_types": ["full_attention"] * 4,
            "tie_word_embeddings": False,
        },
        {"layer_types": None, "no_rope_layers": None},
    ),
}


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
