"""Experts on a GPU: wherever they lie, the same bits; and what they say is what the CPU says."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.written_models import write_model

from actors.core.event import Event
from pipeline import Model, Output
from pipeline.devices.cuda import CudaDevice
from pipeline.generation.token_experts import TokenExperts

pytestmark = pytest.mark.cuda
SHAPE = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 104,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "eos_token_id": 2,
}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"head_dim": 16, "num_experts": 9, "num_experts_per_tok": 3, "norm_topk_prob": True},
    "qwen2_moe": {"num_experts": 6, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 56},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **LATENT,
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 2,
        "topk_group": 1,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "deepseek_v4": {
        "head_dim": 20,
        "num_key_value_heads": 1,
        "q_lora_rank": 24,
        "partial_rotary_factor": 0.4,
        "o_groups": 2,
        "o_lora_rank": 12,
        "sliding_window": 6,
        "swiglu_limit": 2.0,
        "index_topk": 3,
        "index_n_heads": 14,  # with few, scores are exactly 0, and of such a GPU chooses others than a CPU
        "index_head_dim": 16,
        "hc_mult": 3,
        "hc_sinkhorn_iters": 4,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 32},
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        "num_hash_layers": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
    },
}
PROMPTS = [[*range(3, 203)], [5, 9, 77, 34, 8, 8, 90], [*range(3, 90), 7]]
SLEEP_CYCLES = 20_000_000
NEW: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True, "logprobs": 20}
SLOTS = ((1, 1), (4, 9), (13, 5), (None, None))


async def said(folder: Path, prompts: list[list[int]], **settings: Any) -> list[Output]:
    async with Model.open(folder, **settings) as model:
        return await asyncio.gather(*(model.generate(prompt, **NEW) for prompt in prompts))


@pytest.mark.parametrize("name", MODELS)
async def test_experts_say_what_the_cpu_says_wherever_they_lie(name: str, tmp_path: Path) -> None:
    write_model(tmp_path, {"model_type": name, **SHAPE, **MODELS[name]})
    mode = {"device": "cuda", "dtype": "float32", "batch_invariant": True}
    on_cpu = await said(tmp_path, PROMPTS, device="cpu")
    for device, host in SLOTS:
        ours = await said(tmp_path, PROMPTS, **mode, gpu_experts=device, host_experts=host)
        assert [one.token_ids for one in ours] == [one.token_ids for one in on_cpu], (device, host)
        for one, other in zip(ours, on_cpu, strict=True):
            assert one.logprobs is not None
            assert other.logprobs is not None
            for step, theirs in zip(one.logprobs, other.logprobs, strict=True):
                assert max(abs(step[token] - theirs[token]) for token in theirs if token in step) < 2e-3
        if device == 1:
            first = ours
        assert ours == first


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_experts_need_no_company(dtype: str, tmp_path: Path) -> None:
    write_model(tmp_path, {"model_type": "qwen3_moe", **SHAPE, **MODELS["qwen3_moe"]})
    mode = {"device": "cuda", "dtype": dtype, "batch_invariant": True, "gpu_experts": 5}
    together = await said(tmp_path, PROMPTS, **mode, max_tokens_per_pass=100)
    assert together == [(await said(tmp_path, [prompt], **mode))[0] for prompt in PROMPTS]


async def test_experts_that_follow_from_tokens_wait_until_the_device_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids are late in each pass; a pass that decodes needs nothing else that is copied behind them."""
    write_model(tmp_path, {"model_type": "deepseek_v4", **SHAPE, **MODELS["deepseek_v4"]})
    mode = {"device": "cuda", "dtype": "float32"}
    expected = await said(tmp_path, PROMPTS[1:2], **mode)
    begin, were_late = TokenExperts.begin, list[bool]()

    def late(self: TokenExperts, token_ids: Sequence[int], rows: int) -> Event:
        assert isinstance(self._device, CudaDevice)
        self._device._lanes["h2d"].submit(lambda: torch.cuda._sleep(SLEEP_CYCLES), (), short=True)
        event = begin(self, token_ids, rows)
        were_late.append(not event.done())
        return event

    monkeypatch.setattr(TokenExperts, "begin", late)
    assert await said(tmp_path, PROMPTS[1:2], **mode) == expected
    assert len(were_late) >= NEW["max_new_tokens"]
    assert all(were_late)
