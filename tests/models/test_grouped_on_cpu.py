"""Experts in one call on a CPU: what single products give, whatever the company, rows and threads."""

import threading
from concurrent.futures import Future

import pytest
import torch

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.fp4 import MXFP4_DEEPSEEK, NVFP4, Float4, Float4Matrix
from pipeline.formats.fp8 import Float8, Float8Matrix
from pipeline.formats.matrix import Matrix, Weights
from pipeline.models.feed_forwards import Clamp, FeedForward
from pipeline.models.ops import clamped_gate

pytest.importorskip("numba")
from pipeline.models.grouped_on_cpu import GroupedOnCpu, Laid, laid

HIDDEN, SIZE, EXPERTS = 224, 160, 3
KIND = FeedForward(size=SIZE)
CLAMPED = FeedForward(size=SIZE, clamp=Clamp(limit=0.7, slope=1.3, offset=0.5))
FORMATS = {
    "bf16": None,
    "rows": Float8("ct", ("scale",), 1, None, rounds_to_scales=True),
    "blocks": Float8("fp8", ("scale",), 64, 128),
    "matrix": Float8("modelopt", ("scale",), None, None),
    "powers": Float8("deepseek", ("scale",), 64, 128),
    "mxfp4": MXFP4_DEEPSEEK,
}


def matrix(name: str, rows: int, columns: int) -> Matrix:
    weight_FD = torch.randn(rows, columns) / 10
    stored_in = FORMATS[name]
    if stored_in is None:
        return DenseMatrix(weight_FD.bfloat16())
    if isinstance(stored_in, Float4):
        exponents = torch.randint(119, 125, (rows, columns // 32), dtype=torch.uint8)
        exponents[0, :2] = torch.tensor([0, 150])  # the least, and a large one
        pairs = torch.randint(256, (rows, columns // 2), dtype=torch.uint8)
        pairs[0, 16:32] = 0x80  # zeros of both signs where scales are large
        return Float4Matrix(stored_in, pairs.view(torch.int8), exponents.view(torch.float8_e8m0fnu), None)
    values_FD = (weight_FD * 1000).clamp(-448, 448).to(torch.float8_e4m3fn)
    values_FD.view(torch.uint8)[0, :4] = torch.tensor(
        [0, 0x80, 1, 0x87], dtype=torch.uint8
    )  # zeros, and two without exponent
    grid = (-(-rows // (stored_in.block_rows or rows)), -(-columns // (stored_in.block_columns or columns)))
    scales = torch.rand(grid) / 1000 + 1e-4
    if name == "blocks":  # a large scale of small numbers
        values_FD.view(torch.uint8)[:64, :128] &= 0x81
        scales[0, 0] = 300.0
    if name == "powers":
        scales = torch.randint(115, 119, grid, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    return Float8Matrix(stored_in, values_FD, scales.bfloat16() if name == "rows" else scales)


def expert(name: str) -> Weights:
    wide = {short: matrix(name, SIZE, HIDDEN) for short in ("gate", "up")}
    return Weights({}, {**wide, "down": matrix(name, HIDDEN, SIZE)})


def expected(kind: FeedForward, weights: Weights, x_RD: torch.Tensor) -> torch.Tensor:
    """By decoded matrices, rounded to bf16 where torch rounds."""
    gate_FD, up_FD, down_DF = (weights.matrices[short].decoded(torch.float32) for short in ("gate", "up", "down"))
    gate, up = ((x_RD.float() @ one.T).bfloat16() for one in (gate_FD, up_FD))
    if kind.clamp is not None:
        return clamped_gate(gate, up, kind.clamp).float() @ down_DF.T
    return (torch.nn.functional.silu(gate) * up).float() @ down_DF.T


def known(weights: Weights, kind: FeedForward = KIND) -> Laid:
    found = laid(kind, weights)
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "kind"), [(name, KIND if name != "mxfp4" else CLAMPED) for name in FORMATS])
def test_products_are_those_by_decoded_matrices(name: str, kind: FeedForward) -> None:
    each = [expert(name) for _ in range(EXPERTS)]
    x_TD = torch.randn(5, HIDDEN).bfloat16()
    row_P = torch.tensor([4, 0, 1, 2, 3, 2])
    spans = [(0, 1), (1, 5), (5, 6)]
    outputs = []
    for threads in (1, 3):
        grouped, output_PD = GroupedOnCpu(threads), torch.empty(len(row_P), HIDDEN, dtype=torch.bfloat16)
        grouped.multiply(
            kind, [(known(one, kind), *span) for one, span in zip(each, spans, strict=True)], x_TD, row_P, output_PD
        )
        outputs.append(output_PD)
        alone_PD = torch.empty(1, HIDDEN, dtype=torch.bfloat16)
        grouped.multiply(kind, [(known(each[1], kind), 0, 1)], x_TD, row_P[3:4], alone_PD)
        assert torch.equal(alone_PD[0], output_PD[3])
        grouped.close()
    assert torch.equal(*outputs)
    for one, (begin, end) in zip(each, spans, strict=True):
        wanted_RD = expected(kind, one, x_TD[row_P[begin:end]])
        torch.testing.assert_close(
            outputs[0][begin:end].float(), wanted_RD, rtol=2**-6, atol=2**-6 * wanted_RD.abs().max().item()
        )


def test_what_is_no_number_stays_none() -> None:
    for name, kind in (("bf16", KIND), ("blocks", KIND), ("mxfp4", CLAMPED)):
        weights = expert(name)
        match weights.matrices["up"]:
            case DenseMatrix(weight_FD=weight_FD):
                weight_FD[3, 5] = float("nan")
            case Float8Matrix(values_FD=values_FD):
                values_FD.view(torch.uint8)[3, 5] = 0xFF
            case Float4Matrix(scales_FG=scales_FG):
                scales_FG.view(torch.uint8)[3, 1] = 0xFF
        output_PD, row_P = torch.empty(1, HIDDEN, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int64)
        run = known(weights, kind), 0, 1
        GroupedOnCpu(1).multiply(kind, [run], torch.randn(1, HIDDEN).bfloat16(), row_P, output_PD)
        assert output_PD.isnan().all()


def test_what_the_kernels_do_not_know_is_left_to_others() -> None:
    weights = expert("bf16")
    assert laid(FeedForward(size=SIZE, activation="gelu_tanh"), weights) is None
    assert laid(FeedForward(size=SIZE, gated=False), weights) is None
    assert laid(FeedForward(size=SIZE, fused=True), weights) is None
    assert laid(KIND, Weights({"down_bias": torch.zeros(HIDDEN)}, weights.matrices)) is None
    wide, turned = torch.zeros(SIZE, HIDDEN), torch.zeros(HIDDEN, SIZE).bfloat16().T
    for other in (wide, turned):
        assert laid(KIND, Weights({}, {**weights.matrices, "up": DenseMatrix(other)})) is None
    pairs, halves = torch.zeros(SIZE, HIDDEN // 2, dtype=torch.int8), torch.ones(SIZE, 1, dtype=torch.float16)
    nvfp4 = Float4Matrix(NVFP4, pairs, torch.ones(SIZE, HIDDEN // 16).to(torch.float8_e4m3fn), torch.ones(1))
    by_rows = Float8("ct", ("scale",), 1, None, rounds_to_scales=True)
    fp16 = Float8Matrix(by_rows, torch.zeros(SIZE, HIDDEN).to(torch.float8_e4m3fn), halves)
    for one in (nvfp4, fp16):
        assert laid(KIND, Weights({}, dict.fromkeys(("gate", "up", "down"), one))) is None
    assert laid(KIND, Weights({}, {**weights.matrices, "up": matrix("blocks", SIZE, HIDDEN)})) is None
    assert laid(KIND, Weights({}, {**expert("blocks").matrices, "up": matrix("matrix", SIZE, HIDDEN)})) is None


def test_a_call_that_is_done_leaves_nothing_to_a_thread_that_was_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that computes something else would get a piece of nothing for each call, and keep their rows meanwhile."""
    grouped, others, free = GroupedOnCpu(2), list[Future[object]](), threading.Event()
    assert grouped._others is not None
    grouped._others.submit(free.wait, 10)
    submit = grouped._others.submit
    monkeypatch.setattr(grouped._others, "submit", lambda *given: others.append(submit(*given)) or others[-1])
    output_PD, row_P = torch.empty(1, HIDDEN, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int64)
    grouped.multiply(KIND, [(known(expert("bf16")), 0, 1)], torch.randn(1, HIDDEN).bfloat16(), row_P, output_PD)
    cancelled = [one.cancelled() for one in others]
    free.set()
    grouped.close()
    assert cancelled == [True]
