"""Tokens are chosen on the GPU: the same alone as among others, without waiting, and nothing but them comes back."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.choosing import MIXED, Chooser, company_changes_nothing, sampler

from actors.core.ports import Copy
from pipeline.devices.cuda import CudaDevice
from pipeline.generation.sampling import Choice

pytestmark = pytest.mark.cuda
SIZE = 128_256


async def test_a_row_is_the_same_alone_and_among_others_and_when_its_pass_is_computed_once_more() -> None:
    await company_changes_nothing(CudaDevice)


async def test_the_tokens_are_those_of_the_cpu() -> None:
    """But where exp of the two differs in its last bit just where a random number falls."""
    devices = Chooser(SIZE, len(MIXED)), Chooser(SIZE, len(MIXED), CudaDevice())
    other = 0
    for step in range(8):
        logits_RV = torch.randn(len(MIXED), SIZE, generator=torch.Generator().manual_seed(step)) * (step + 0.1)
        samplers = [sampler(SIZE, (3, 4), **{"seed": row, **one, "logprobs": None}) for row, one in enumerate(MIXED)]
        on_cpu, on_gpu = [await one.outcomes(samplers, logits_RV) for one in devices]
        other += sum(one != two for one, two in zip(on_cpu, on_gpu, strict=True))
    assert other <= 1
    for chooser in devices:
        await chooser.aclose()


async def test_passes_allocate_nothing_wait_for_nothing_and_fetch_only_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    download = CudaDevice.download

    def counted(self: CudaDevice, source: Any, target: Any, copies: Sequence[Copy], after: Any) -> Any:
        copied.extend(copy.length for copy in copies)
        return download(self, source, target, copies, after)

    monkeypatch.setattr(CudaDevice, "download", counted)
    mixed = [one for one in MIXED if "logits_processor" not in one and "logprobs" not in one]
    chooser = Chooser(SIZE, 64, CudaDevice())
    samplers = [sampler(SIZE, (3, 4), **{**mixed[row % len(mixed)], "max_new_tokens": 90}) for row in range(64)]
    logits_RV = torch.randn(64, SIZE)
    for step in range(6):
        if step == 3:
            before, held = torch.cuda.memory_stats()["num_device_alloc"], torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.set_sync_debug_mode("error")
        try:
            outcomes = await chooser.choose(samplers, logits_RV)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(isinstance(one, Choice) for one in outcomes)
    assert torch.cuda.memory_stats()["num_device_alloc"] == before
    assert torch.cuda.memory_allocated() == held
    assert torch.cuda.max_memory_allocated() - held < 16 << 20, "sums over blocks and settings, for a moment"
    assert copied == 6 * [64 * 4 * 8]
    await chooser.aclose()
