"""A model runs on the GPU that is named, and on no other, whichever is the current one of the caller."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import Model, Output
from pipeline.devices.cuda import CudaDevice
from pipeline.errors import ConfigError
from pipeline.system.hub_cache import BUNDLED, BUNDLED_INT4

pytestmark = pytest.mark.cuda
SEVERAL = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
PROMPTS = [[1, 5, 9], [4, 3, 7, 11, 20, 8], [9]]


async def generate(model: Model) -> list[Output]:
    calls: list[dict[str, Any]] = [{"logprobs": 2}, {"temperature": 0.8, "top_p": 0.9, "seed": 5}]
    asked = [model.generate(one, max_new_tokens=12, ignore_eos=True, **call) for one in PROMPTS for call in calls]
    return list(await asyncio.gather(*asked))


async def answers(folder: Path, device: str, **settings: Any) -> list[Output]:
    async with Model.open(folder, device=device, **settings) as model:
        assert str(model.runtime.device.torch_device) == ("cuda:0" if device == "cuda" else device)
        return await generate(model)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=f"'cuda:{count}' is not among the GPUs that CUDA shows: have"):
        asyncio.run(answers(BUNDLED, f"cuda:{count}"))


@SEVERAL
@pytest.mark.parametrize("settings", [{}, {"residency": False}], ids=["stays", "moves"])
@pytest.mark.parametrize("model", [BUNDLED, BUNDLED_INT4], ids=["bf16", "int4"])
async def test_the_second_gpu_gives_the_same_tokens_and_the_first_is_left_alone(
    model: Path, settings: dict[str, Any]
) -> None:
    expected = await answers(model, "cuda", **settings)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(0)
    found = await answers(model, "cuda:1", **settings)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert torch.cuda.current_device() == 0, "the caller's"
    assert torch.cuda.memory_reserved(0) == before
    with torch.cuda.device(1):
        again = await answers(model, "cuda", **settings)
        assert torch.cuda.current_device() == 1
    assert [one.token_ids for one in again] == [one.token_ids for one in expected]


@SEVERAL
async def test_two_models_run_at_once_on_a_gpu_each() -> None:
    (expected,) = await asyncio.gather(answers(BUNDLED, "cuda", residency=False))
    both = await asyncio.gather(answers(BUNDLED, "cuda", residency=False), answers(BUNDLED, "cuda:1", residency=False))
    for found in both:
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]


@SEVERAL
async def test_rows_that_lie_on_one_gpu_are_copied_to_the_other_behind_their_event() -> None:
    """What sections hand on: the copy is launched on the lane of the target, which waits for the source's event."""
    first, second = CudaDevice(0), CudaDevice(1)
    try:
        source, target = first.device_memory(64 << 20).tensor, second.device_memory(64 << 20).tensor
        for value in range(1, 30):

            def fill(value: int = value) -> None:
                torch.cuda._sleep(2_000_000)
                source.fill_(value)

            filled = first.launch("compute", fill, ())
            copied = second.launch("compute", lambda: target.copy_(source, non_blocking=True), (filled,))
            await copied.wait()
            assert int(target[0]) == int(target[-1]) == value
    finally:
        await first.aclose()
        await second.aclose()
