"""GLM-4.7-Flash: DeepSeek-V3's layers in small, of which only the first has no experts."""

from dataclasses import replace

from pipeline.models.families import deepseek_v3

FAMILY = replace(
    deepseek_v3.FAMILY,
    name="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    absent={
        **deepseek_v3.FAMILY.absent,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.8,
        "first_k_dense_replace": 1,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 202752,
    },
)
