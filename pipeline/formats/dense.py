"""Matrices that are stored as they are: one tensor each, in a float dtype, cast where another one is computed in.

Letters in names: T tokens of this pass, D columns, F rows of a matrix.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn import functional

from pipeline.formats.cpu_compiled import dense_products
from pipeline.formats.matrix import Matrix
from pipeline.formats.tensors import TensorRange, TensorSpec, stored_dtype

SMALL_NUMBERS = 1 << 11
"""Of a matrix by which torch multiplies two rows in bf16 by a kernel of its own, and more rows by oneDNN."""


@dataclass(frozen=True, slots=True)
class DenseMatrix:
    """See `Matrix`."""

    weight_FD: torch.Tensor

    def apply(self, x_TD: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
        """`x_TD` times the transposed matrix, plus bias: [T, F] in the dtype of `x_TD`."""
        if (fast := dense_products(self.weight_FD, x_TD)) is not None:
            product_TF: torch.Tensor = fast.dense_product(self.weight_FD, x_TD, bias_F)
            return product_TF
        return linear(x_TD, self.weight_FD, bias_F)

    def decoded(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix itself, [F, D], which must not be changed."""
        return self.weight_FD.to(dtype)

    def decoded_rows(self, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [first, last), as a copy."""
        return self.weight_FD[first:last].to(dtype, copy=True)


class StoredDense:
    """See `StoredMatrix`."""

    __slots__ = ("columns", "dtype", "form", "row_step", "rows", "short", "tensors")

    def __init__(self, tensors: tuple[TensorRange, ...], transposed: bool = False) -> None:
        (tensor,) = self.tensors = tensors
        self.rows, self.columns = reversed(tensor.shape) if transposed else tensor.shape
        self.form = transposed
        self.short, self.dtype, self.row_step = tensor.short, stored_dtype(tensor.dtype), None if transposed else 1

    def slice(self, first: int, last: int) -> "StoredDense":
        """Rows [first, last), which lie one behind the other."""
        return StoredDense((self.tensors[0].rows(first, last),))

    def scratch_bytes(self, dtype: torch.dtype) -> int:
        """None, but for a copy where it must be cast."""
        return cast_bytes(self.tensors[0], dtype)

    def over(self, views: Mapping[str, torch.Tensor]) -> DenseMatrix:
        """What multiplies, over the tensors of its group by short name."""
        return DenseMatrix(views[self.short] if self.row_step else views[self.short].T)


@dataclass(frozen=True, slots=True)
class Dense:
    """See `Format`. A `transposed` one is stored as [D, F], as the experts of gpt-oss are, and multiplied by so."""

    name: ClassVar = "not quantised"
    transposed: bool = False

    def stored_as(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The tensor itself."""
        return (replace(spec, shape=spec.shape[::-1]) if self.transposed else spec,)

    def stored(self, spec: TensorSpec, tensors: tuple[TensorRange, ...]) -> StoredDense:
        """The tensor itself."""
        return StoredDense(tensors, self.transposed)


def joined(first: Matrix | None, second: Matrix | None, dtype: torch.dtype) -> DenseMatrix | None:
    """Both as one matrix, whose rows are those of the first, then those of the second: one product is faster than two.

    None where they do not lie so, or would be cast to compute in `dtype`.
    """
    if not isinstance(first, DenseMatrix) or not isinstance(second, DenseMatrix):
        return None
    upper_FD, lower_FD = first.weight_FD, second.weight_FD
    end = upper_FD.storage_offset() + upper_FD.numel()
    is_behind = end == lower_FD.storage_offset() and upper_FD.data_ptr() + upper_FD.nbytes == lower_FD.data_ptr()
    is_like = upper_FD.dtype is lower_FD.dtype is dtype and upper_FD.shape[1] == lower_FD.shape[1]
    if not is_behind or not is_like or not upper_FD.is_contiguous() or not lower_FD.is_contiguous():
        return None
    return DenseMatrix(upper_FD.as_strided((len(upper_FD) + len(lower_FD), upper_FD.shape[1]), upper_FD.stride()))


def all_dense(name: str) -> Dense:
    """The format of every matrix of a checkpoint that is not quantised."""
    return Dense()


def cast_bytes(tensor: TensorRange, dtype: torch.dtype) -> int:
    """The size of the copy of a tensor, a norm or a bias too, that is stored in another dtype than it is used in."""
    return 0 if stored_dtype(tensor.dtype) == dtype else math.prod(tensor.shape) * dtype.itemsize


def linear(x_TD: torch.Tensor, weight_FD: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
    """[T, D] times [F, D] transposed, plus bias: [T, F] in the dtype of `x_TD`. Weights of another dtype are cast."""
    weight_FD, bias_F = weight_FD.to(x_TD.dtype), None if bias_F is None else bias_F.to(x_TD.dtype)
    if x_TD.device.type == "cpu" and _takes_one_dnn(weight_FD):
        # Left to itself torch takes MKL in fp32, whose rows depend on how many there are and how many threads share
        # them, and in bf16 a kernel of its own for products of at most 4,096 numbers, which other rows make larger.
        product_TF: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_TD, weight_FD, bias_F, "none", [], "")
        return product_TF
    return functional.linear(x_TD, weight_FD, bias_F)


def _takes_one_dnn(weight_FD: torch.Tensor) -> bool:
    """Whether a product must be asked of oneDNN, so that it is what computes it for any number of rows."""
    if not torch.backends.mkldnn.is_available():
        return False
    if weight_FD.dtype is torch.float32:
        return True
    is_small = weight_FD.dtype is torch.bfloat16 and weight_FD.numel() <= SMALL_NUMBERS
    return is_small and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
