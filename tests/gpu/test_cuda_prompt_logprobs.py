"""What a GPU makes of each token of a prompt, and of biases and least lengths: as a CPU does, in the planned memory."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.scored_prompts import PROMPTS, ROOM, ask

from actors.core.message import READY
from pipeline import Model
from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.devices.cuda import CudaDevice
from pipeline.generation.prompt_scores import PromptScorer, ScoredRows
from pipeline.models.row_blocks import RowBlocks

pytestmark = pytest.mark.cuda
SETTINGS: list[dict[str, Any]] = [{}, {"max_tokens_per_pass": 7}, {"policy": "stage3"}, {"residency": False}]
CHOSEN: list[dict[str, Any]] = [
    {"logit_bias": {7: 3.5, 20: -100, 21: 4.25}},
    {"min_new_tokens": 30, "stop_token_ids": [*range(100)]},
    {"logit_bias": {2: 100}, "min_new_tokens": 9, "temperature": 0.7, "seed": 3, "logprobs": 2},
]


async def test_scores_are_those_of_the_cpu_with_the_same_bits_whatever_the_passes_are(tmp_path: Path) -> None:
    await asyncio.to_thread(tiny_models.save, "qwen3", tmp_path)
    async with Model.open(tmp_path, device="cpu", **ROOM) as model:
        expected = [await ask(model, index) for index in range(len(PROMPTS))]
    found = []
    for settings in SETTINGS:
        mode = {**ROOM, "device": "cuda", "batch_invariant": True, **settings}
        async with Model.open(tmp_path, **mode) as model:
            found.append(await asyncio.gather(*(ask(model, index) for index in range(len(PROMPTS)))))
    async with Model.open(tmp_path, **ROOM, device="cuda") as model:
        fast = await asyncio.gather(*(ask(model, index) for index in range(len(PROMPTS))))
    assert all(outputs == found[0] for outputs in found[1:])
    for outputs in (found[0], fast):
        for output, one in zip(outputs, expected, strict=True):
            for logprobs, of_cpu in zip(output.prompt_logprobs or (), one.prompt_logprobs or (), strict=True):
                assert logprobs == (of_cpu and pytest.approx(of_cpu, abs=1e-4))


async def test_biases_and_least_lengths_choose_as_on_the_cpu(tmp_path: Path) -> None:
    await asyncio.to_thread(tiny_models.save, "qwen3", tmp_path)
    chosen = []
    for device in ("cpu", "cuda"):
        async with Model.open(tmp_path, **ROOM, device=device) as model:
            calls = [model.generate(prompt, max_new_tokens=40, **one) for prompt in PROMPTS for one in CHOSEN]
            chosen.append([(one.token_ids, one.finish_reason) for one in await asyncio.gather(*calls)])
    assert chosen[0] == chosen[1]
    assert {len(token_ids) for token_ids, _ in chosen[0][2::3]} == {10}


async def test_scoring_takes_no_more_memory_than_is_planned(tmp_path: Path) -> None:
    shape = {"layers": 2, "hidden_size": 512, "ffn_size": 1536, "heads": 8, "kv_heads": 2, "vocabulary_size": 128_256}
    await asyncio.to_thread(make_checkpoint, tmp_path, "llama-3.2-1b", **shape)
    prompt = [*range(5, 2053)]
    async with Model.open(tmp_path, device="cuda", max_tokens_per_pass=2048) as model:
        for _ in range(3):  # what is recorded as graphs is a holding of its own
            await model.generate(prompt, max_new_tokens=1)
        gc.collect()  # what earlier tests have left
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        scored = await model.generate(prompt, max_new_tokens=1, prompt_logprobs=20)
        taken, kept = torch.cuda.max_memory_allocated() - held, torch.cuda.memory_allocated() - held
        planned = {one.holder: one.nbytes for one in model.runtime.plan.held("device")}["activations"]
    assert taken < planned + (2 << 20), "and what topk takes for a moment"
    assert kept == 0
    assert [len(one or ()) for one in scored.prompt_logprobs or ()][:2] == [0, 21]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
async def test_the_host_waits_for_no_score() -> None:
    device = CudaDevice()
    scorer, scored = PromptScorer(device, RowBlocks(), 64, 64), ScoredRows([], True, READY)
    logits_RV = torch.randn(64, 50_000, device="cuda")
    scorer._inputs_RI.fill_(3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            for first in (0, 50_000):
                scorer.add(scored, 0, 64, first, logits_RV.clone())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected_R = logits_RV.double().logsumexp(1) + torch.tensor(2.0).log().item()
    torch.testing.assert_close(scorer._numbers_RC[:, 0], expected_R, atol=1e-5, rtol=0)
    await device.aclose()
