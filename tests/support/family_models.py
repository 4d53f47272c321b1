"""A tiny random model of each family whose layers differ from Llama's, with what to change in its config.json.

The sizes are odd, and so chosen that every flag changes what the model says.
"""

import warnings

from support import compressed_models, expert_models, gemma_models, hybrid_models, latent_models
from support.family_case import LONG, MIXED, PIXTRAL, SHAPE, YARN, Case

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import (
        Glm4Config,
        Glm4MoeConfig,
        GptOssConfig,
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

CASES: dict[str, Case] = {
    **gemma_models.CASES,
    **hybrid_models.CASES,
    **latent_models.CASES,
    **compressed_models.CASES,
    **expert_models.CASES,
    "glm4": Case(
        lambda: Glm4Config(**SHAPE, head_dim=20, attention_bias=True, rope_parameters={"rope_theta": 300.0}),
        {
            "attention_bias": False,
            "head_dim": 12,
            "rope_parameters.partial_rotary_factor": 0.2,
            "rope_parameters.rope_theta": 90.0,
        },
    ),
    "glm4_moe": Case(
        lambda: Glm4MoeConfig(
            **SHAPE,
            head_dim=20,
            attention_bias=True,
            use_qk_norm=True,
            rope_parameters={"rope_theta": 300.0},
            moe_intermediate_size=28,
            n_routed_experts=12,
            num_experts_per_tok=3,
            n_shared_experts=2,
            n_group=4,
            topk_group=2,
            routed_scaling_factor=1.7,
        ),
        {
            "attention_bias": False,
            "use_qk_norm": False,
            "head_dim": 12,
            "rope_parameters.partial_rotary_factor": 0.2,
            "rope_parameters.rope_theta": 90.0,
            "num_experts_per_tok": 2,
            "n_group": 3,
            "topk_group": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 2,
        },
    ),
    "gpt_oss": Case(
        lambda: GptOssConfig(
            **{**SHAPE, "intermediate_size": 36},
            head_dim=14,
            sliding_window=6,
            num_local_experts=7,
            num_experts_per_tok=3,
            swiglu_limit=2.0,
            rope_parameters={key: value for key, value in YARN.items() if "mscale" not in key},
        ),
        {
            "attention_bias": False,
            "layer_types": MIXED,
            "sliding_window": 9,
            "num_experts_per_tok": 2,
            "swiglu_limit": 1.0,
            "swiglu_alpha": 0.5,
            "rope_parameters.rope_theta": 90.0,
            "rope_parameters.factor": 1.5,
            "rope_parameters.truncate": True,
        },
        {"layer_types": None},
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
            vision_config=PIXTRAL,
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
