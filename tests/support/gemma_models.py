"""Tiny random models of Gemma 2, 3 and 4; the last one, inside a model that sees, has experts.

Their sizes are odd, and so chosen that every flag changes what is said.
"""

import copy
import warnings

from support.family_case import MIXED, SHAPE, Case

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Gemma2Config, Gemma3Config, Gemma3TextConfig, Gemma4Config, Gemma4TextConfig

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

TOWER = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}

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
            vision_config={**TOWER, "image_size": 8},
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
}
OF_GEMMA4 = CASES["gemma4_text"]
EXPERTS = {"enable_moe_block": True, "num_experts": 7, "top_k_experts": 3, "moe_intermediate_size": 28}
CASES["gemma4"] = Case(
    lambda: Gemma4Config(
        text_config={**OF_GEMMA4.config().to_dict(), **EXPERTS},
        vision_config={**TOWER, "num_key_value_heads": 2, "head_dim": 4, "position_embedding_size": 16},
    ),
    {
        "text_config.sliding_window": 9,
        "text_config.final_logit_softcapping": None,
        "text_config.enable_moe_block": False,
        "text_config.top_k_experts": 2,
        "text_config.hidden_activation": "silu",
    },
    OF_GEMMA4.older,
    rope_is_older=False,
)
