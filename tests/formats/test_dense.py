"""Dense matrices against torch, on sizes that are not square and that no block divides."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pipeline.formats.dense import Dense, DenseMatrix, StoredDense
from pipeline.formats.matrix import Weights
from pipeline.formats.tensors import TensorRange, TensorSpec

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ROWS, COLUMNS = 37, 23


def stored(dtype: str, start: int = 1000) -> StoredDense:
    length = ROWS * COLUMNS * DTYPES[dtype].itemsize
    return StoredDense((TensorRange("q", "model.q", Path("file"), start, length, (ROWS, COLUMNS), dtype),))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("computed", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_is_that_of_torch_with_weights_cast_to_what_is_computed_in(
    dtype: str, computed: torch.dtype, with_bias: bool
) -> None:
    torch.manual_seed(1)
    views = {"q": torch.randn(ROWS, COLUMNS).to(DTYPES[dtype]), "norm": torch.randn(COLUMNS)}
    if with_bias:
        views["q_bias"] = torch.randn(ROWS, dtype=torch.float64).to(DTYPES[dtype])
    weights = Weights(views, {"q": stored(dtype).over(views)})
    for tokens in (1, 2, 5, 33):
        x = torch.randn(tokens, COLUMNS).to(computed)
        product = weights.project("q", x)
        assert (product.dtype, product.shape) == (computed, (tokens, ROWS))
        bias = views["q_bias"].double() if with_bias else None
        expected = functional.linear(x.double(), views["q"].to(computed).double(), bias)
        eps = torch.finfo(computed).eps
        torch.testing.assert_close(product.double(), expected, rtol=4 * eps, atol=4 * eps * COLUMNS**0.5)
        assert torch.equal(product, DenseMatrix(views["q"].to(computed)).apply(x, bias))


def test_a_matrix_is_seen_where_it_lies_and_decoded_from_there() -> None:
    views = {"q": torch.randn(ROWS, COLUMNS)}
    matrix = stored("F32").over(views)
    before, x = matrix.apply(torch.ones(2, COLUMNS)), torch.ones(2, COLUMNS)
    assert torch.equal(matrix.decoded(torch.float32), views["q"])
    assert matrix.decoded_rows(0, 3, torch.float32).data_ptr() != views["q"].data_ptr()
    views["q"].mul_(2)
    assert torch.equal(matrix.apply(x), before * 2)
    assert torch.equal(matrix.decoded(torch.float16), views["q"].half())


@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_of_its_rows_are_the_bytes_of_the_matrix_one_behind_the_other(dtype: str) -> None:
    whole, raw = stored(dtype), torch.randn(ROWS, COLUMNS).to(DTYPES[dtype])
    file = bytes(1000) + bytes(raw.view(torch.uint8).flatten().tolist())
    parts = [whole.slice(first, last) for first, last in itertools.pairwise((0, 8, 9, 32, ROWS))]
    assert [part.rows for part in parts] == [8, 1, 23, 5]
    read = bytearray(b"".join(file[one.start : one.start + one.length] for part in parts for one in part.tensors))
    assert torch.equal(torch.frombuffer(read, dtype=DTYPES[dtype]).view(ROWS, COLUMNS), raw)
    assert parts[1].tensors == whole.slice(8, 32).slice(0, 1).tensors


def test_only_a_matrix_that_is_cast_takes_scratch_memory() -> None:
    assert stored("BF16").scratch_bytes(torch.bfloat16) == 0
    assert stored("BF16").scratch_bytes(torch.float32) == ROWS * COLUMNS * 4
    assert stored("F64").scratch_bytes(torch.float16) == ROWS * COLUMNS * 2
    assert stored("F32").slice(3, 9).scratch_bytes(torch.float16) == 6 * COLUMNS * 2


def test_it_is_asked_for_as_one_tensor_of_its_shape() -> None:
    spec = TensorSpec("q", "model.q", (ROWS, COLUMNS))
    assert Dense().stored_as(spec) == (spec,)
    assert spec.is_matrix
    assert not TensorSpec("norm", "model.norm", (COLUMNS,)).is_matrix
