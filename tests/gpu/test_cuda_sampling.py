"""Tokens are chosen on the GPU: the same alone as among others, without waiting, and nothing but them comes back."""

import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.choosing import MIXED, Chooser, company_changes_nothing, sampler

from actors.core.ports import Copy
from pipeline.devices.cuda import CudaDevice
from pipeline.generation import choosing, drawing
from pipeline.generation.drawing import FORCED, ONCE, RULED_OUT, SEEN, Filters, Scratch
from pipeline.generation.sampling import Choice

pytestmark = pytest.mark.cuda
SIZE = 128_256


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """As when a model is opened: compiling keeps the event loop from running for a second."""
    for size in (500, 1500, SIZE):
        choosing.fused(torch.device("cuda", 0), size)


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


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
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


@torch.no_grad()
@pytest.mark.parametrize("size", [300, 4097, SIZE])
def test_what_few_kernels_choose_is_what_torch_chooses_bit_for_bit(size: int) -> None:
    """Near and far scores, bf16 with its ties, and all alike; the last digits of top-p and of random numbers."""
    from pipeline.generation import fused_drawing

    generator = torch.Generator().manual_seed(size)
    scratch = Scratch(torch.zeros(Scratch.nbytes(8, size), dtype=torch.uint8, device="cuda"), 8, size)
    told = torch.tensor([0] * 90 + [SEEN, SEEN | 2 * ONCE, SEEN | ONCE, RULED_OUT, SEEN | RULED_OUT, FORCED])
    for number, switches in enumerate(itertools.product((False, True), repeat=5)):
        filters = Filters(False, *switches)
        logits_RV = torch.randn(8, size, generator=generator) * (0.01, 1.0, 4.0, 30.0, 0.0)[number % 5]
        logits_RV = logits_RV.bfloat16().float() if number % 3 == 0 else logits_RV
        tables_RV = told[torch.randint(len(told), (8, size), generator=generator)].int()
        numbers = [
            [row, 7 - row, 0.1 + row / 4, 1 + 9 * row, 1 - row / 8, row if filters.min_p else math.inf, 1.1, 0.3, 0.7]
            for row in range(8)
        ]
        uniform = torch.rand(8, 1, dtype=torch.float64, generator=generator)
        uniform[1] = 0
        numbers_RC = torch.cat([torch.tensor(numbers, dtype=torch.float64), uniform], 1)
        places = logits_RV.cuda(), tables_RV.cuda(), numbers_RC.cuda()
        for one in (filters, filters._replace(greedy=True)):
            found = fused_drawing.choose(scratch, *places, one)
            assert torch.equal(found, drawing.choose(scratch, *places, one)), (number, one)


async def test_without_triton_one_warning_says_why_and_the_tokens_are_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*arguments: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    logits_RV, outcomes = torch.randn(2, 500), []
    for broken in (False, True):
        choosing.fused.cache_clear()
        if broken:
            monkeypatch.setattr("pipeline.generation.fused_drawing.try_out", no_compiler)
        chooser = Chooser(500, 2, CudaDevice())
        with caplog.at_level(logging.WARNING, "penstock"):
            for _ in range(2):
                samplers = [sampler(500, seed=row, temperature=1.0, top_p=0.9) for row in range(2)]
                outcomes.append(await chooser.outcomes(samplers, logits_RV))
        await chooser.aclose()
    choosing.fused.cache_clear()
    assert outcomes == 4 * outcomes[:1]
    (warned,) = [record.getMessage() for record in caplog.records if "many steps" in record.getMessage()]
    assert "Failed to find C compiler" in warned
