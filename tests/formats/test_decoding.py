"""Products by blocks of decoded rows, whatever decodes them."""

from dataclasses import dataclass

import pytest
import torch

from pipeline.formats.decoding import BLOCK_ROWS, block_rows, decoded_matrix, decoded_product, decoding_bytes
from pipeline.formats.dense import linear
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
