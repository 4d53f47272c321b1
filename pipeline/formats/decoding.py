"""Products with matrices that are decoded where they are used, a block of rows at a time.

A block is small, so that it stays in the cache of the CPU between being decoded and being multiplied. How many rows it
has follows from the shape of the matrix alone: no result depends on what else is computed with it.
Letters in names: T tokens of this pass, D columns, F rows of a matrix, G groups of columns that share a scale.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Protocol, runtime_checkable

import torch

from pipeline.formats.cpu_choice import faster
from pipeline.formats.cpu_compiled import products
from pipeline.formats.cpu_threads import share_out
from pipeline.formats.dense import linear
from pipeline.formats.encoded import GPU_BLOCK_BYTES, Encoded
from pipeline.formats.matrix import Matrix, StoredMatrix, Weights
from pipeline.formats.tensors import TensorRange, stored_dtype

logger = logging.getLogger("penstock")

BLOCK_BYTES = 2 << 20
"""Of a block of rows that is decoded in fp32."""
BLOCK_ROWS = 32
"""A block has a multiple of so many, where its matrix has: few rows make slow products."""
SCRATCH_BYTES_PER_ITEM = 16
"""What decoding an item takes at most, with indices, what is decoded, and its copy in another dtype."""


@runtime_checkable
class DecodableRows(Protocol):
    """A `Matrix` whose rows can be decoded."""

    @property
    def shape(self) -> tuple[int, int]:
        """F and D."""

    @property
    def device(self) -> torch.device:
        """Where it lies."""

    def encoded(self) -> Encoded | None:
        """What kernels decode it from; None where they do not know how."""

    def decoded_rows(self, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [first, last), as a new tensor [last - first, D]. `first` is a multiple of `BLOCK_ROWS`."""


def block_rows(shape: tuple[int, int]) -> int:
    """How many rows of a matrix of this shape, [F, D], are decoded at once."""
    rows, columns = shape
    return min(rows, max(1, BLOCK_BYTES // (columns * torch.float32.itemsize * BLOCK_ROWS)) * BLOCK_ROWS)


def decoding_bytes(shape: tuple[int, int]) -> int:
    """The scratch memory of `decoded_product` with a matrix of this shape, [F, D]."""
    blocks_of_kernels = max(GPU_BLOCK_BYTES, torch.get_num_threads() * BLOCK_BYTES)
    of_kernels = min(shape[0] * shape[1] * torch.float32.itemsize, blocks_of_kernels)
    return max(block_rows(shape) * shape[1] * SCRATCH_BYTES_PER_ITEM, of_kernels)


def decoded_product(matrix: DecodableRows, x_TD: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
    """`x_TD` times the transposed matrix, plus bias: [T, F] in the dtype of `x_TD`."""
    if x_TD.is_cuda and (encoded := matrix.encoded()) is not None:
        fast = kernels(x_TD.device, has_float8=encoded.kind == "fp8")
        if fast is not None:
            product: torch.Tensor = fast.product(encoded, x_TD, bias_F)
            return product
    fast_on_cpu = products(x_TD) if x_TD.device.type == "cpu" else None
    if fast_on_cpu is not None and (encoded := matrix.encoded()) is not None:
        filling = fast_on_cpu.Product(x_TD, matrix.shape[0], bias_F)
        if not filling.by_encoded(encoded):
            _decode_blocks(matrix, x_TD.dtype, lambda first, _, decoded_FD: filling.by_decoded(first, decoded_FD))
        filled: torch.Tensor = filling.result
        return filled
    product_TF = x_TD.new_empty(len(x_TD), matrix.shape[0])

    def multiply(first: int, last: int, decoded_FD: torch.Tensor) -> None:
        bias = None if bias_F is None else bias_F[first:last]
        product_TF[:, first:last] = linear(x_TD, decoded_FD, bias)

    _decode_blocks(matrix, x_TD.dtype, multiply)
    return product_TF


def projections(weights: Weights, shorts: Sequence[str], x_TD: torch.Tensor) -> list[torch.Tensor]:
    """The products with the matrices of these names, together where that is faster, with the same bits."""
    encoded = [encoded_of(weights.matrices[short]) for short in shorts]
    known = [one for one in encoded if one is not None]
    if len(known) == len(shorts):
        if x_TD.is_cuda:
            fast = kernels(x_TD.device, has_float8=any(one.kind == "fp8" for one in known))
        else:
            fast = products(x_TD) if x_TD.device.type == "cpu" else None
        biases = [weights.bias(short) for short in shorts]
        made: list[torch.Tensor] | None = None if fast is None else fast.products(known, x_TD, biases)
        if made is not None:
            return made
    return [weights.project(short, x_TD) for short in shorts]


def add_product(weights: Weights, short: str, x_TD: torch.Tensor, onto_TF: torch.Tensor) -> torch.Tensor:
    """Add the product with the matrix of this name to `onto_TF`, which is contiguous and of the dtype of `x_TD`, on a
    GPU in one launch where that can be, with the same bits.
    """
    if x_TD.is_cuda and (encoded := encoded_of(weights.matrices[short])) is not None:
        fast = kernels(x_TD.device, has_float8=encoded.kind == "fp8")
        if fast is not None:
            added: torch.Tensor = fast.product(encoded, x_TD, weights.bias(short), onto_TF)
            return added
    return onto_TF.add_(weights.project(short, x_TD))


def encoded_of(matrix: Matrix) -> Encoded | None:
    """What kernels decode it from; None where it is not quantised, or they do not know how."""
    encoded: Callable[[], Encoded | None] | None = getattr(matrix, "encoded", None)
    return None if encoded is None else encoded()


def compile_products(
    matrices: Iterable[tuple[StoredMatrix, TensorRange | None]],
    counts: Iterable[int],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Make the kernels of a GPU that multiply so many rows of x by these matrices, each with its bias if it has one.

    That takes about a second for each, once on a machine. Nothing is computed, and no memory is taken.
    """

    def nothing(part: TensorRange) -> torch.Tensor:
        return torch.empty(part.shape, dtype=stored_dtype(part.dtype), device="meta")

    different: dict[tuple[object, ...], tuple[StoredMatrix, TensorRange | None]] = {}
    for one, bias in matrices:
        parts = [(part.dtype, part.shape) for part in one.tensors]
        different.setdefault((type(one), *parts, None if bias is None else bias.dtype), (one, bias))
    for one, bias in different.values():
        encoded = encoded_of(one.over({part.short: nothing(part) for part in one.tensors}))
        if encoded is not None and (fast := kernels(device, has_float8=encoded.kind == "fp8")) is not None:
            for count in counts:
                x_TD = torch.empty(count, one.columns, dtype=dtype, device="meta")
                fast.product(encoded, x_TD, None if bias is None else nothing(bias))


def decoded_matrix(matrix: DecodableRows, dtype: torch.dtype) -> torch.Tensor:
    """All rows, [F, D]."""
    all_FD = torch.empty(matrix.shape, dtype=dtype, device=matrix.device)
    if all_FD.is_cuda and (encoded := matrix.encoded()) is not None:
        fast = kernels(all_FD.device, has_float8=encoded.kind == "fp8")
        if fast is not None:
            fast.decode(encoded, 0, all_FD)
            return all_FD

    def copy(first: int, last: int, decoded_FD: torch.Tensor) -> None:
        all_FD[first:last] = decoded_FD

    _decode_blocks(matrix, dtype, copy)
    return all_FD


def _decode_blocks(matrix: DecodableRows, dtype: torch.dtype, use: Callable[[int, int, torch.Tensor], None]) -> None:
    """Call `use` with the first row and the end of each block and what is decoded, which lasts until it returns."""
    rows, step = matrix.shape[0], block_rows(matrix.shape)

    def decode(first: int, last: int) -> torch.Tensor:
        return matrix.decoded_rows(first, last, dtype)

    if matrix.device.type == "cpu" and (encoded := matrix.encoded()) is not None:
        by_kernels = faster(encoded, dtype, decode, step)
        if by_kernels is not None:
            share_out(range(0, rows, step), lambda at: use(at, end := min(at + step, rows), by_kernels(at, end)))
            return
    for first in range(0, rows, step):
        use(first, last := min(first + step, rows), decode(first, last))


def scale_columns(values_FD: torch.Tensor, scales_FG: torch.Tensor, group: int) -> torch.Tensor:
    """Multiply, in place, each row by its scales, of which each is for `group` columns; the last may have fewer."""
    whole = values_FD.shape[1] // group
    values_FD[:, : whole * group].unflatten(1, (whole, group)).mul_(scales_FG[:, :whole, None])
    if whole < scales_FG.shape[1]:
        values_FD[:, whole * group :].mul_(scales_FG[:, whole:])
    return values_FD


@functools.cache
def kernels(device: torch.device, *, has_float8: bool) -> ModuleType | None:
    """What multiplies by encoded matrices, where this is a GPU for which Triton compiles it; else a warning says why
    not.
    """
    try:
        from pipeline.formats import triton_products

        with torch.cuda.device(device):  # Triton compiles for the current one
            triton_products.try_out(device, has_float8=has_float8)
    except Exception as error:
        logger.warning(
            "quantised matrices are decoded by many small operations on %s, which is slow: Triton, which needs a C "
            "compiler, could not make the kernels: %s: %s",
            device,
            type(error).__name__,
            error,
        )
        return None
    return triton_products
