"""Matrices of 8 bit floats (e4m3), each block of which shares a scale that multiplies.

Three libraries write them, and differ in what has been rounded once the scale is applied:
* transformers' "fp8" (fine-grained, as DeepSeek's) multiplies in fp32 and rounds to the dtype that is computed in.
* compressed-tensors ("float-quantized", "naive-quantized") multiplies in the dtype of the scales.
* ModelOpt's FP8 multiplies in the dtype that is asked for, with the scale rounded to it: it is asked for fp32 here,
  since the scale is stored so and the kernels that serve these files apply it so.
The size of a block is the one that the config gives, so that the last blocks of both axes may be partial. The loader of
transformers takes it from the number of scales, and is wrong where blocks do not divide the matrix
(findings/fp8_blocks_of_transformers.sh).
Letters in names: T tokens of this pass, D columns, F rows of a matrix, G groups of columns that share a scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipeline.formats.decoding import decoded_matrix, decoded_product, decoding_bytes, scale_columns
from pipeline.formats.encoded import Encoded, as_words
from pipeline.formats.lookup import byte_table, is_exponent, looked_up, scales_in_float32
from pipeline.formats.tensors import WEIGHT_DTYPES, TensorRange, TensorSpec, stored_dtype

SCALE_DTYPES = ("BF16", "F16", "F32")
EXPONENT_DTYPES = ("F8_E8M0", "U8")
"""Of scales that are exponents of a power of two. To these nothing can be rounded."""


@dataclass(frozen=True, slots=True)
class Float8:
    """See `Format`. A scale is for the rows and columns of a block, where None are all.

    `endings` are the names of the scales that count, behind that of the module.
    """

    library: str
    endings: tuple[str, ...]
    block_rows: int | None
    block_columns: int | None
    rounds_to_scales: bool = False
    """Whether what is decoded is rounded to the dtype of the scales before it is cast."""

    @property
    def name(self) -> str:
        """The name of the format in messages."""
        each = f"block of {self.block_rows} x {self.block_columns}"
        if self.block_columns is None:
            each = "matrix" if self.block_rows is None else "row"
        return f"{self.library} FP8, a scale for each {each}"

    def stored_as(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The values, and their scales."""
        rows, columns = spec.shape
        grid = (blocks(rows, self.block_rows), blocks(columns, self.block_columns))
        shapes: tuple[tuple[int, ...], ...] = (grid,)
        if self.block_columns is None:
            shapes = (grid, grid[:1], ()) if self.block_rows is None else (grid, grid[:1])
        dtypes = SCALE_DTYPES if self.rounds_to_scales else SCALE_DTYPES + EXPONENT_DTYPES
        values = spec.part("", "weight", spec.shape, ("F8_E4M3",))
        scales = spec.part("scale", self.endings[0], grid, dtypes, endings=self.endings, shapes=shapes)
        return values, scales

    def stored(self, spec: TensorSpec, tensors: tuple[TensorRange, ...]) -> "StoredFloat8":
        """The matrix over what was found."""
        return StoredFloat8(self, tensors)


class StoredFloat8:
    """See `StoredMatrix`."""

    def __init__(self, stored_in: Float8, tensors: tuple[TensorRange, ...]) -> None:
        values, scales = self.tensors = tensors
        self.format = self.form = stored_in
        self.short, (self.rows, self.columns) = values.short, values.shape
        self.dtype = stored_dtype(scales.dtype) if scales.dtype in WEIGHT_DTYPES else torch.bfloat16
        self.row_step = stored_in.block_rows or 1

    def slice(self, first: int, last: int) -> "StoredFloat8":
        """Rows [first, last), and the scales of the blocks that they are in."""
        values, scales = self.tensors
        if (step := self.format.block_rows) is not None:
            scales = scales.rows(first // step, blocks(last, step))
        return StoredFloat8(self.format, (values.rows(first, last), scales))

    def scratch_bytes(self, dtype: torch.dtype) -> int:
        """That of decoding a block of rows."""
        return decoding_bytes((self.rows, self.columns))

    def over(self, views: Mapping[str, torch.Tensor]) -> "Float8Matrix":
        """What multiplies, over the tensors of its group by short name."""
        return Float8Matrix(self.format, views[self.short], views[f"{self.short}.scale"])


@dataclass(frozen=True, slots=True)
class Float8Matrix:
    """See `Matrix`."""

    format: Float8
    values_FD: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """F and D."""
        rows, columns = self.values_FD.shape
        return rows, columns

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.values_FD.device

    def apply(self, x_TD: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
        """`x_TD` times the transposed matrix, plus bias: [T, F] in the dtype of `x_TD`."""
        return decoded_product(self, x_TD, bias_F)

    def decoded(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix itself, [F, D]."""
        return decoded_matrix(self, dtype)

    def decoded_rows(self, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [first, last), as a new tensor."""
        columns = self.shape[1]
        values_FD = looked_up(self.values_FD[first:last], byte_table(torch.float8_e4m3fn, self.device))
        scale_columns(values_FD, self._scales(first, last), self.format.block_columns or columns)
        if self.format.rounds_to_scales:
            values_FD = values_FD.to(self.scales.dtype)
        return values_FD.to(dtype)

    def encoded(self) -> Encoded | None:
        """See `DecodableRows`; the kernels want whole words in a row."""
        if self.shape[1] % 4:
            return None
        scales_FG, step = (
            self.scales.reshape(-1, blocks(self.shape[1], self.format.block_columns)),
            self.format.block_rows,
        )
        return Encoded(
            "fp8",
            self.shape,
            as_words(self.values_FD),
            scales_FG if step else scales_FG.expand(self.shape[0], -1),
            self.format.block_columns or self.shape[1],
            scales_FG.dtype if self.format.rounds_to_scales else torch.float32,
            block_rows=step or 1,
            scaled="exponent" if is_exponent(scales_FG) else "",
        )

    def _scales(self, first: int, last: int) -> torch.Tensor:
        """Those of rows [first, last), [F, G] in fp32, or [1, G] where all rows share them."""
        scales_FG = self.scales.reshape(-1, blocks(self.shape[1], self.format.block_columns))
        if (step := self.format.block_rows) is None:
            return scales_in_float32(scales_FG)
        scales_FG = scales_in_float32(scales_FG[first // step : blocks(last, step)])
        return scales_FG[torch.arange(first, last, device=self.device) // step - first // step]


def blocks(count: int, block: int | None) -> int:
    """How many blocks of so many rows or columns hold `count` of them, where None is one block for all."""
    return 1 if block is None else -(-count // block)
