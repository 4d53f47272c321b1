"""Norms and gates as one kernel each: as torch computes them, each row alone as in company; and what a pass takes."""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import Model
from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.models import ops
from pipeline.models.ops import gate as gate_by
from pipeline.models.ops import rms_norm
from pipeline.models.row_blocks import MOST_ROWS

pytestmark = pytest.mark.cuda
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
MOST_ODD = {torch.bfloat16: 1e-3, torch.float16: 1e-3, torch.float32: 1.0}
"""The share of items that may be off, by a unit in the last place: a norm adds up in another order than torch does."""


def in_torch(work: Callable[[], torch.Tensor]) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_kernels", lambda *kind: None)
        return work()


def assert_nearly(found: torch.Tensor, expected: torch.Tensor, units: float = 1.0) -> None:
    assert (found != expected).float().mean() <= MOST_ODD[found.dtype]
    unit = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found, expected, rtol=units * unit, atol=units * torch.finfo(found.dtype).tiny)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(8192, 4096), (300, 104), (7, 2050), (33, 11008), (5, 8, 128), (1, 24576)], ids=str)
@torch.inference_mode()
def test_a_norm_is_that_of_torch_and_of_its_row_alone(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x, weight = (torch.randn(size, device="cuda").to(dtype) for size in (shape, shape[-1:]))
    normed = rms_norm(x * 3, weight, 1e-5)
    assert_nearly(normed, in_torch(lambda: rms_norm(x * 3, weight, 1e-5)), units=4)
    assert torch.equal(rms_norm(x[-1:] * 3, weight, 1e-5), normed[-1:])
    assert torch.equal(rms_norm(x * 3, weight.float(), 1e-5), normed), "weights that are stored in another dtype"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_a_gate_is_that_of_torch_wherever_it_stands(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    some = torch.randn(1 << 16, device="cuda")
    numbers = some if dtype is torch.float32 else torch.arange(-(1 << 15), 1 << 15, device="cuda").short().view(dtype)
    gate = torch.cat((numbers[numbers.isfinite()], torch.zeros(3, device="cuda", dtype=dtype)))
    up = torch.randn(len(gate), device="cuda").to(dtype)
    gated = gate_by(gate.clone(), up, "silu", by_formula=False)
    assert_nearly(gated, in_torch(lambda: gate_by(gate.clone(), up, "silu", by_formula=False)), units=32)
    assert torch.equal(gate_by(gate[5:].clone(), up[5:].clone(), "silu", by_formula=False), gated[5:])


@pytest.mark.parametrize("prompt_tokens", [300, 2 * MOST_ROWS])
async def test_a_pass_takes_what_is_planned_for_it(prompt_tokens: int, tmp_path: Path) -> None:
    await asyncio.to_thread(make_checkpoint, tmp_path / "m", "llama-3.2-1b", layers=2, vocabulary_size=8192)
    settings = {"context_tokens": 5120, "max_requests": 1, "max_tokens_per_pass": prompt_tokens}
    async with Model.open(tmp_path / "m", device="cuda", **settings) as model:
        generate = functools.partial(model.generate, [1] * prompt_tokens, max_new_tokens=1, ignore_eos=True)
        await generate()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        await generate()
        taken = torch.cuda.max_memory_allocated() - before
        (planned,) = [one.nbytes for one in model.runtime.plan.holdings if one.holder == "activations"]
        assert taken <= planned < 1.25 * taken
