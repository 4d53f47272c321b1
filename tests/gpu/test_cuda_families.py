"""Layers of every kind on a GPU: what they say is what the CPU says, and does not depend on company."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from support.stacked_experts import GROUP, quantise, stack
from support.written_models import write_model

from pipeline import Model, Output

pytestmark = pytest.mark.cuda
SHAPE = {
    "vocab_size": 259,
    "hidden_size": 48,
    "intermediate_size": 104,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "eos_token_id": 2,
}
KINDS = ["sliding_attention", "full_attention", "full_attention"]
HYBRID = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 40,
}
LATENT = {
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "kv_lora_rank": 264,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 2,
    "topk_group": 1,
}
GPT_OSS = {"head_dim": 16, "sliding_window": 20, "num_local_experts": 7, "num_experts_per_tok": 3, "swiglu_limit": 1.0}
MODELS: dict[str, dict[str, Any]] = {
    "deepseek_v3": LATENT,
    "glm_moe_dsa": {
        **LATENT,
        "n_group": 1,
        "topk_group": 1,
        "index_topk": 30,
        "index_n_heads": 14,
        "index_topk_freq": 2,
    },
    "gemma2": {"head_dim": 16, "sliding_window": 20, "query_pre_attn_scalar": 7, "attn_logit_softcapping": 3.0},
    "gemma3_text": {"head_dim": 16, "sliding_window": 20, "layer_types": KINDS},
    "gemma4_text": {
        "head_dim": 16,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "sliding_window": 20,
        "layer_types": KINDS,
    },
    "gemma4_text with experts": {
        "head_dim": 16,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 7,
        "top_k_experts": 3,
        "moe_intermediate_size": 40,
    },
    "glm4": {"head_dim": 16},
    "glm4_moe": {
        "head_dim": 16,
        "moe_intermediate_size": 40,
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
    },
    "gpt_oss": GPT_OSS,
    "minimax_m2": {"head_dim": 16, "rotary_dim": 8, "num_local_experts": 7, "num_experts_per_tok": 3},
    "granite": {"residual_multiplier": 0.5, "attention_multiplier": 0.3, "embedding_multiplier": 6.0},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 16.0,
            "llama_4_scaling_beta": 0.4,
            "original_max_position_embeddings": 32,
        }
    },
    "olmo2": {},
    "olmo3": {"sliding_window": 20},
    "phi3": {"partial_rotary_factor": 0.5, "hidden_size": 64},
    "qwen3_5_text": {**HYBRID, "linear_num_value_heads": 6},
    "qwen3_next": {**HYBRID, "linear_num_value_heads": 2, "num_experts": 0},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
}
PROMPTS = [[*range(3, 203)], [5, 9, 77, 34, 8, 8, 90], [*range(3, 90), 7]]
NEW = {"max_new_tokens": 20, "ignore_eos": True, "logprobs": 259}


async def said(folder: Path, prompts: list[list[int]], **settings: Any) -> list[Output]:
    async with Model.open(folder, **settings) as model:
        return await asyncio.gather(*(model.generate(prompt, **NEW) for prompt in prompts))


@pytest.mark.parametrize("name", MODELS)
async def test_every_kind_of_layer_says_what_the_cpu_says_and_needs_no_company(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path, {"model_type": name.split()[0], **SHAPE, **MODELS[name]})
    mode = {"device": "cuda", "dtype": "float32", "batch_invariant": True}
    for ours, theirs in zip(
        await said(tmp_path, PROMPTS, **mode), await said(tmp_path, PROMPTS, device="cpu"), strict=True
    ):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs is not None
        assert theirs.logprobs is not None
        for step, other in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert max(abs(step[token] - other[token]) for token in other) < 2e-3
    for dtype in ("float32", "bfloat16"):
        mode["dtype"] = dtype
        together = await said(tmp_path, PROMPTS, **mode, max_tokens_per_pass=100)
        assert together == [(await said(tmp_path, [prompt], **mode))[0] for prompt in PROMPTS], dtype
    assert not [record for record in caplog.records if "Triton" in record.getMessage()], "the kernels were used"


@pytest.mark.parametrize("is_quantised", [False, True], ids=["bf16", "mxfp4"])
async def test_experts_of_gpt_oss_say_what_the_cpu_says_wherever_they_lie(is_quantised: bool, tmp_path: Path) -> None:
    sizes = {**SHAPE, **GPT_OSS, "hidden_size": 2 * GROUP, "intermediate_size": 3 * GROUP}
    write_model(tmp_path, {"model_type": "gpt_oss", **sizes}, torch.bfloat16)
    stack(tmp_path)
    if is_quantised:
        quantise(tmp_path)
    mode = {"device": "cuda", "dtype": "float32"}
    there = await said(tmp_path, PROMPTS[1:2], **mode)
    (ours,), (theirs,) = there, await said(tmp_path, PROMPTS[1:2], device="cpu", dtype="float32")
    assert ours.token_ids == theirs.token_ids
    for dtype in ("float32", "bfloat16"):
        mode = {"device": "cuda", "dtype": dtype, "batch_invariant": True}
        expected = await said(tmp_path, PROMPTS, **mode)
        for count in (1, 2, 9):
            assert await said(tmp_path, PROMPTS, **mode, gpu_experts=count, host_experts=22 - count) == expected, dtype
