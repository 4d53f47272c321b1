"""Products of rows in bf16 on a CPU that adds up products in bf16 by itself."""

import pytest
import torch
from support.golden_cases import decoding_by, same_bits

from pipeline.formats import cpu_choice, decoding
from pipeline.formats.decoding import decoded_product, projections
from pipeline.formats.fp4 import MXFP4, NVFP4, Float4Matrix
from pipeline.formats.fp8 import Float8, Float8Matrix
from pipeline.formats.integers import IntegerMatrix
from pipeline.formats.matrix import Weights
from pipeline.formats.nf4 import Nf4Matrix, _State
from pipeline.formats.packed_ints import PackedIntegers

cpu_products = pytest.importorskip("pipeline.formats.cpu_products", reason="needs numba", exc_type=ImportError)
ROWS, COLUMNS = SHAPE = (70, 256)
pytestmark = pytest.mark.skipif(not cpu_products.HAS_DOTS, reason="needs AVX-512 BF16, without AMX")


def fp8(rows: int, columns: int) -> Float8Matrix:
    by_rows = Float8("", ("scale",), 1, None, rounds_to_scales=True)
    numbers = torch.randint(0, 0x60, (rows, columns), dtype=torch.uint8)
    return Float8Matrix(by_rows, numbers.view(torch.float8_e4m3fn), torch.rand(rows, 1).to(torch.bfloat16))


def matrices() -> dict[str, IntegerMatrix | Float8Matrix | Float4Matrix | Nf4Matrix]:
    """Those decoded in registers, and others; rows are left over where four are taken at once."""
    torch.manual_seed(1)
    words, zeros = (torch.randint(-(2**31), 2**31, (rows, COLUMNS // 8)).to(torch.int32) for rows in (ROWS, 9))
    pairs, scales = words.view(torch.uint8), torch.rand(ROWS, COLUMNS // 32) + 0.5
    powers = torch.randint(124, 130, scales.shape, dtype=torch.uint8)
    halves = scales.to(torch.float16)
    return {
        "int4": IntegerMatrix(PackedIntegers(4, 32, symmetric=True), SHAPE, (words, scales.to(torch.bfloat16)), None),
        "int4 with zeros": IntegerMatrix(
            PackedIntegers(4, 64, symmetric=False),
            SHAPE,
            (words, halves[:, :4].contiguous(), zeros[:, :4].contiguous()),
            None,
        ),
        "MXFP4": Float4Matrix(MXFP4, pairs, powers, None),
        "NVFP4": Float4Matrix(NVFP4, pairs, halves.repeat(1, 2).to(torch.float8_e4m3fn), torch.tensor([7.3])),
        "nf4": Nf4Matrix(_State(64, torch.bfloat16, 0.0), SHAPE, pairs.flatten(), scales.flatten()[: ROWS * 4], ()),
        "FP8": fp8(*SHAPE),
        "FP8 of many columns": fp8(7, 2080),
    }


@pytest.mark.parametrize("name", matrices())
def test_a_row_has_the_same_bits_however_many_there_are_and_whatever_decodes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "BLOCK_BYTES", 0)
    monkeypatch.setattr(cpu_products, "PIECE_NUMBERS", 0)
    monkeypatch.setattr(cpu_products, "ALONE_NUMBERS", 0)
    matrix, threads = matrices()[name], torch.get_num_threads()
    rows, columns = matrix.shape
    x, bias = torch.randn(300, columns).to(torch.bfloat16), torch.randn(rows)
    x[1] = 0  # as rows are that fill up
    weights = matrix.decoded(torch.bfloat16).float()
    with torch.inference_mode(), decoding_by("numba"):
        whole = decoded_product(matrix, x, bias)
        off = (whole.float() - (x.float() @ weights.T + bias)).abs()
        assert bool((off <= 2**-7 * (x.float().abs() @ weights.abs().T + bias.abs())).all())
        try:
            for count in (1, 2, 3, 4, 7, 9, 130):
                torch.set_num_threads(1 + count % 3)
                assert same_bits(decoded_product(matrix, x[:count], bias), whole[:count]), count
        finally:
            torch.set_num_threads(threads)
        monkeypatch.setattr(cpu_choice, "faster", lambda *_: None)
        monkeypatch.setattr(decoding, "faster", lambda *_: None)
        assert same_bits(decoded_product(matrix, x, bias), whole), "decoded by torch"
        picked = decoded_product(matrix, torch.eye(columns, dtype=torch.bfloat16))
        assert torch.equal(picked.T, matrix.decoded(torch.bfloat16))
        assert len(decoded_product(matrix, x[:0])) == 0


def test_only_rows_in_bf16_of_whole_registers_are_taken() -> None:
    assert cpu_products.can_multiply(torch.empty(1, 32, dtype=torch.bfloat16))
    assert not cpu_products.can_multiply(torch.empty(1, 32))
    assert not cpu_products.can_multiply(torch.empty(1, 48, dtype=torch.bfloat16))


def test_products_that_are_made_together_are_those_made_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "PIECE_NUMBERS", 0)
    monkeypatch.setattr(cpu_products, "ALONE_NUMBERS", 0)
    for names, few in ((("int4", "MXFP4", "nf4"), True), (("int4", "FP8"), False)):
        chosen = {name: matrices()[name] for name in names}
        weights = Weights({"int4_bias": torch.randn(ROWS)}, chosen)
        with torch.inference_mode(), decoding_by("numba"):
            for count in (1, 5, 40):
                x = torch.randn(count, COLUMNS).to(torch.bfloat16)
                known = [one.encoded() for one in chosen.values()]
                assert (cpu_products.products(known, x, [None] * len(names)) is not None) == (few and count < 40)
                for made, name in zip(projections(weights, names, x), names, strict=True):
                    assert same_bits(made, weights.project(name, x)), (name, count)
