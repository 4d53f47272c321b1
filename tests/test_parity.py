"""The whole line against transformers, and against itself under every budget, queue size, loop and copy mode."""

import asyncio
import functools
from pathlib import Path

import pytest
import torch
import uvloop
from support import tiny_models
from support.cases import EVERYTHING

from pipeline import Model, Output

STEPS = 32 if EVERYTHING else 16
FEWER_STEPS = 12
"""For a run under each of many settings, all of which are crossed by the first passes."""


@functools.cache
def reference(variant: str, dtype: torch.dtype, folder: Path) -> tiny_models.Greedy:
    return tiny_models.greedy(
        tiny_models.save_and_read(variant, folder, shards=3, dtype=dtype), tiny_models.PROMPT, STEPS
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


async def greedy(folder: Path, steps: int = STEPS, **settings: object) -> Output:
    async with Model.open(folder, **settings) as model:
        return await model.generate(
            tiny_models.PROMPT, max_new_tokens=steps, ignore_eos=True, logprobs=tiny_models.VOCABULARY_SIZE
        )


@pytest.mark.parametrize("variant", tiny_models.VARIANTS)
async def test_fp32_tokens_and_logprobs_equal_transformers(variant: str, folders: Path) -> None:
    expected = await asyncio.to_thread(reference, variant, torch.float32, folders / variant)
    output = await greedy(folders / variant, device="cpu")
    assert list(output.token_ids) == expected.token_ids
    assert output.logprobs is not None
    for step, logprobs in enumerate(output.logprobs):
        ours = torch.tensor([logprobs[token_id] for token_id in range(tiny_models.VOCABULARY_SIZE)])
        torch.testing.assert_close(ours, expected.logprobs[step], atol=1e-4, rtol=0)


@pytest.mark.usefixtures("everything_moves")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_output_is_bit_equal_for_every_budget_queue_copy_and_loop(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_models.save("llama_gqa_llama3", tmp_path, shards=2, dtype=dtype)
    settings = [
        {"gpu_groups": gpu_groups, "queues": dict.fromkeys(QUEUES, queue), "device": device, "host_groups": host_groups}
        for gpu_groups, queue, device, host_groups in [
            (2, 1, "cpu", 4),
            (3, 1, "cpu", 4),
            (4, 4, "cpu", 4),
            (7, 2, "cpu", 4),
            (1, 1, "cpu", 4),
            (2, 1, "cpu-copy", 2),
            (3, 3, "cpu-copy", 1),
            (5, 1, "cpu-copy", 6),
            (4, 8, "cpu-copy", 3),
        ][:: 1 if EVERYTHING or dtype == torch.float32 else 3]
    ]
    outputs = []
    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            outputs += [runner.run(greedy(tmp_path, FEWER_STEPS, **one)) for one in settings]
    assert len(outputs) == 2 * len(settings)
    assert all(output == outputs[0] for output in outputs)


QUEUES = ("disk_reader", "pinned_stager", "gpu_uploader", "compute_scheduler")


async def test_bf16_is_as_near_to_transformers_as_transformers_to_itself(tmp_path: Path) -> None:
    """The gap between its own eager and sdpa attention is the yardstick; one rounding of a logit is the floor."""

    def distances() -> tuple[torch.Tensor, torch.Tensor]:
        model = tiny_models.save_and_read("qwen3", tmp_path, dtype=torch.bfloat16)
        logits = [
            tiny_models.logits(tiny_models.with_attention(model, name), tiny_models.PROMPT)[-1]
            for name in ("eager", "sdpa")
        ]
        return logits[0], logits[1]

    eager, sdpa = await asyncio.to_thread(distances)
    async with Model.open(tmp_path, device="cpu") as model:
        output = await model.generate(tiny_models.PROMPT, max_new_tokens=1, logprobs=tiny_models.VOCABULARY_SIZE)
    assert output.logprobs is not None
    ours = torch.tensor([output.logprobs[0][token_id] for token_id in range(tiny_models.VOCABULARY_SIZE)])
    allowed = (eager.log_softmax(0) - sdpa.log_softmax(0)).abs().max() + eager.abs().max() / 256
    assert (ours - eager.log_softmax(0)).abs().max() <= allowed


async def test_a_prompt_longer_than_a_pass_gives_the_same_tokens(tmp_path: Path) -> None:
    await asyncio.to_thread(tiny_models.save, "mistral_window", tmp_path)
    whole = await greedy(tmp_path, device="cpu")
    for tokens in (1, 4, 12):
        pieces = await greedy(tmp_path, device="cpu", max_tokens_per_pass=tokens)
        assert pieces.token_ids == whole.token_ids


async def test_compute_dtype_may_differ_from_the_checkpoints(tmp_path: Path) -> None:
    """bf16 weights computed in fp32 equal transformers on the same weights in fp32."""
    model = await asyncio.to_thread(tiny_models.save_and_read, "llama_tied", tmp_path, 1, torch.bfloat16)
    expected = await asyncio.to_thread(tiny_models.greedy, model.float(), tiny_models.PROMPT, STEPS)
    output = await greedy(tmp_path, device="cpu", dtype="float32")
    assert list(output.token_ids) == expected.token_ids
