"""Many experts in two launches: what each gives by itself, in every format that the kernels know. Needs a GPU."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.fp4 import MXFP4_GPT_OSS, Float4Matrix
from pipeline.formats.fp8 import Float8, Float8Matrix
from pipeline.formats.matrix import Matrix, Weights
from pipeline.models.experts import expert_product
from pipeline.models.feed_forwards import Clamp, Experts, FeedForward, Routing

grouped_experts = pytest.importorskip("pipeline.models.grouped_experts", reason="its kernels need Triton")
pytestmark = pytest.mark.cuda
TOKENS, CHOSEN, COUNT, HIDDEN, SIZE = 29, 3, 5, 160, 96
FP8 = Float8("FP8", ("weight_scale_inv",), 128, 128)
CLAMP = Clamp(limit=2.0, slope=1.3, offset=1.0)


def dense(rows: int, columns: int, dtype: torch.dtype) -> Matrix:
    return DenseMatrix((torch.randn(rows, columns, device="cuda") * 0.1).to(dtype))


def transposed(rows: int, columns: int, dtype: torch.dtype) -> Matrix:
    return DenseMatrix((torch.randn(columns, rows, device="cuda") * 0.1).to(dtype).T)


def mxfp4(rows: int, columns: int, dtype: torch.dtype) -> Matrix:
    pairs = torch.randint(256, (rows, columns // 2), dtype=torch.uint8, device="cuda")
    exponents = torch.randint(121, 125, (rows, columns // 32), dtype=torch.uint8, device="cuda")
    return Float4Matrix(MXFP4_GPT_OSS, pairs, exponents, None)


def fp8(rows: int, columns: int, dtype: torch.dtype) -> Matrix:
    numbers = (torch.randn(rows, columns, device="cuda") * 50).to(torch.float8_e4m3fn)
    return Float8Matrix(FP8, numbers, torch.rand(-(-rows // 128), -(-columns // 128), device="cuda") * 0.004)


def fp8_powers(rows: int, columns: int, dtype: torch.dtype) -> Matrix:
    numbers = (torch.randn(rows, columns, device="cuda") * 50).to(torch.float8_e4m3fn)
    exponents = torch.randint(117, 120, (-(-rows // 128), -(-columns // 128)), dtype=torch.uint8, device="cuda")
    return Float8Matrix(FP8, numbers, exponents.view(torch.float8_e8m0fnu))


KINDS = {
    "gate and up": FeedForward(size=SIZE),
    "clamped": FeedForward(size=SIZE, clamp=replace(CLAMP, slope=1.0, offset=0.0)),
    "in turns": FeedForward(size=SIZE, fused=True, interleaved=True, clamp=CLAMP),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("made", [dense, transposed, mxfp4, fp8, fp8_powers])
@torch.inference_mode()
def test_experts_in_company_give_what_each_gives_by_itself(
    made: Callable[[int, int, torch.dtype], Matrix], kind: FeedForward, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    shapes, experts = kind.shapes(HIDDEN), []
    for _ in range(COUNT):
        biased = ("gate_up", "down") if kind.fused else ()
        vectors = {f"{short}_bias": torch.randn(shapes[short][0], device="cuda").to(dtype) for short in biased}
        experts.append(Weights(vectors, {short: made(*shape, dtype) for short, shape in shapes.items()}))
    input_TD = torch.randn(TOKENS, HIDDEN, device="cuda").to(dtype)
    ids = torch.stack([torch.randperm(COUNT)[:CHOSEN] for _ in range(TOKENS)]).cuda().flatten()
    order, ends = ids.argsort(stable=True), [0, *ids.bincount(minlength=COUNT).cumsum(0).tolist()]
    places = [grouped_experts.places(kind, weights, 0) for weights in experts]
    runs = [(place.offsets, *span) for place, span in zip(places, itertools.pairwise(ends), strict=True)]
    between, output, alone = (input_TD.new_zeros(TOKENS * CHOSEN, size) for size in (SIZE, HIDDEN, HIDDEN))
    grouped_experts.multiply(kind, places[0], runs, input_TD, order, CHOSEN, between, output)
    for run in reversed(runs):
        grouped_experts.multiply(kind, places[0], [run], input_TD, order, CHOSEN, between, alone)
    assert torch.equal(alone, output)
    table = torch.tensor(grouped_experts.tiles(runs), device="cuda")
    alone.zero_()
    wide, down = places[0].wide, places[0].down
    for line in torch.cat((table, torch.zeros_like(table[:1]))):  # the last is no tile, like the first of each table
        lines = torch.stack((torch.zeros_like(line), line))
        grouped_experts.multiply_tiles(kind, wide, down, lines, input_TD, order, CHOSEN, between, alone)
    assert torch.equal(alone, output)
    everything = Experts(count=COUNT, chosen=CHOSEN, routing=Routing(), expert=kind)
    for weights, (first, last) in zip(experts, itertools.pairwise(ends), strict=True):
        rows = order[first:last]
        expected = expert_product(everything, weights, input_TD[rows // CHOSEN], by_formula=True)
        close = {"atol": 2e-5, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 6e-2, "rtol": 2e-2}
        torch.testing.assert_close(output[rows], expected, **close)
