"""Products by blocks of decoded rows, whatever decodes them."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from support import float_formats, integer_formats
from support.golden_cases import kept_cases
from support.stored_parts import find

from pipeline.formats import decoding
from pipeline.formats.decoding import BLOCK_ROWS, block_rows, decoded_matrix, decoded_product, decoding_bytes
from pipeline.formats.dense import StoredDense, linear
from pipeline.formats.encoded import Encoded
from pipeline.formats.lookup import byte_table, looked_up, nibble_table, scales_in_float32


@dataclass
class Counted:
    """A dense matrix that remembers which rows were decoded."""

    values_FD: torch.Tensor
    device = torch.device("cpu")

    def __post_init__(self) -> None:
        self.shape = (self.values_FD.shape[0], self.values_FD.shape[1])
        self.decoded: list[tuple[int, int]] = []

    def encoded(self) -> None:
        """There are no kernels for it."""

    def decoded_rows(self, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
        self.decoded.append((first, last))
        return self.values_FD[first:last].to(dtype)


def integers(shape: tuple[int, ...]) -> torch.Tensor:
    """Their sums have the same bits in any order."""
    return torch.randint(-3, 4, shape).float()


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (70, 40_000), (131, 6000), (600, 1000)])
def test_a_product_takes_each_row_once_in_blocks_that_only_the_shape_decides(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    rows, columns = shape
    bias = integers((rows,))
    for tokens, dtype in ((1, torch.float32), (5, torch.float32), (3, torch.bfloat16)):
        matrix, x = Counted(integers(shape)), integers((tokens, columns)).to(dtype)
        product = decoded_product(matrix, x, bias)
        assert torch.equal(product, linear(x, matrix.values_FD, bias))
        step = block_rows(shape)
        assert matrix.decoded == [(first, min(first + step, rows)) for first in range(0, rows, step)]
        assert step == rows or (step % BLOCK_ROWS == 0 and (step == BLOCK_ROWS or step * columns * 4 <= 2 << 20))
        assert decoding_bytes(shape) == step * columns * 16
        assert torch.equal(decoded_matrix(matrix, dtype), matrix.values_FD.to(dtype))
    assert torch.equal(decoded_product(matrix, x), decoded_product(matrix, x, torch.zeros(rows)))


def test_bytes_are_looked_up_as_torch_casts_them_and_nibbles_as_they_lie() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(4, 64)
    for dtype in (torch.float8_e4m3fn, torch.float8_e8m0fnu):
        assert torch.equal(
            looked_up(codes, byte_table(dtype, codes.device)).nan_to_num(1.5), codes.view(dtype).float().nan_to_num(1.5)
        )
        assert torch.equal(scales_in_float32(codes.view(dtype)[:, :64]).isnan(), codes.view(dtype).float().isnan())
    assert scales_in_float32(torch.tensor([[0, 127, 130]], dtype=torch.uint8)).tolist() == [[2.0**-127, 1, 8]]
    table = nibble_table(tuple(float(one) for one in range(16)), codes.device)
    assert looked_up(codes[:1, 17:19], table).tolist() == [[1, 1, 2, 1]]
    table = nibble_table(tuple(float(one) for one in range(16)), codes.device, high_first=True)
    assert looked_up(codes[:1, 17:19], table).tolist() == [[1, 1, 1, 2]]


class Compiler:
    """Remembers for what it was to make kernels."""

    def __init__(self) -> None:
        self.made: list[tuple[tuple[int, int], int, bool]] = []

    def product(self, encoded: Encoded, x_TD: torch.Tensor, bias_F: torch.Tensor | None) -> None:
        assert (x_TD.is_meta, encoded.numbers.is_meta, x_TD.shape[1]) == (True, True, encoded.shape[1])
        self.made.append((encoded.shape, len(x_TD), bias_F is not None))


@pytest.mark.parametrize("file", [integer_formats.GOLDEN, float_formats.GOLDEN])
def test_kernels_are_made_once_for_matrices_that_are_stored_alike_in_any_format(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, formats = Compiler(), {**integer_formats.INTEGERS, **float_formats.FLOATS}
    monkeypatch.setattr(decoding, "kernels", lambda device, *, has_float8: compiler)
    known = 0
    for index, case in enumerate(kept_cases(file)):
        stored = find(tmp_path / str(index), formats[case.format](**case.options), case.shape, case.parts)
        bias = replace(stored.tensors[0], short="q_bias", shape=case.shape[:1], dtype="BF16")
        dense = StoredDense((replace(bias, shape=case.shape),))
        compiler.made.clear()
        both = [(stored, None), (stored, None), (stored, bias), (dense, None)]
        decoding.compile_products(both, (1, 17), torch.bfloat16, torch.device("cuda", 0))
        assert compiler.made in ([], [(case.shape, count, biased) for biased in (False, True) for count in (1, 17)])
        known += len(compiler.made) > 0
    assert known >= 9
