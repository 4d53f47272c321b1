"""The families of models that are read, a file for each: what config.json leaves out, and what layers are made of."""

from pipeline.models.families import (
    deepseek_v3,
    deepseek_v32,
    gemma2,
    gemma3,
    gemma4,
    glm4,
    glm4_moe,
    glm_moe_dsa,
    gpt_oss,
    granite,
    kimi_k2,
    llama,
    minimax_m2,
    ministral,
    ministral3,
    mistral,
    mistral3,
    mixtral,
    olmo2,
    olmo3,
    olmoe,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_5,
    qwen3_5_moe,
    qwen3_moe,
    qwen3_next,
    smollm3,
)

FAMILIES = {
    one.name: one
    for one in (
        deepseek_v3.FAMILY,
        deepseek_v32.FAMILY,
        gemma2.FAMILY,
        gemma3.FAMILY,
        gemma4.FAMILY,
        glm4.FAMILY,
        glm4_moe.FAMILY,
        glm_moe_dsa.FAMILY,
        gpt_oss.FAMILY,
        granite.FAMILY,
        kimi_k2.FAMILY,
        llama.FAMILY,
        minimax_m2.FAMILY,
        ministral.FAMILY,
        ministral3.FAMILY,
        mistral.FAMILY,
        mixtral.FAMILY,
        olmo2.FAMILY,
        olmo3.FAMILY,
        olmoe.FAMILY,
        phi3.FAMILY,
        qwen2.FAMILY,
        qwen2_moe.FAMILY,
        qwen3.FAMILY,
        qwen3_5.FAMILY,
        qwen3_5_moe.FAMILY,
        qwen3_moe.FAMILY,
        qwen3_next.FAMILY,
        smollm3.FAMILY,
    )
}
WRAPPERS = {
    one.name: one
    for one in (gemma3.WRAPPER, gemma4.WRAPPER, kimi_k2.WRAPPER, mistral3.WRAPPER, qwen3_5.WRAPPER, qwen3_5_moe.WRAPPER)
}
