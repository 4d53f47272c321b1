"""Matrices of whole numbers, which a zero is taken from and a scale multiplies: what their formats share.

Letters in names: T tokens of this pass, D columns, F rows of a matrix, G groups of columns that share a scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from pipeline.errors import CheckpointError, ConfigError
from pipeline.formats.decoding import decoded_matrix, decoded_product, decoding_bytes
from pipeline.formats.encoded import Encoded
from pipeline.formats.tensors import TensorRange, TensorSpec, stored_dtype

SCALE_DTYPES = ("F16", "BF16", "F32")
ORDER_DTYPES = ("I32", "I64")


class Layout(Protocol):
    """How a format lays numbers, scales and zeros out in its parts, which are in the order of `stored_as`."""

    def rows_of(
        self, parts: Sequence[torch.Tensor], first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor | int, torch.Tensor]:
        """Numbers [F, D] or with more columns, zeros [F, G] and scales [F, G] of rows [first, last)."""

    def encoded(
        self, parts: Sequence[torch.Tensor], shape: tuple[int, int], order_D: torch.Tensor | None
    ) -> Encoded | None:
        """See `DecodableRows`."""


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """See `Matrix`. Groups are as wide as each other and lie in order, or else `order_D` has the group of a column."""

    layout: Layout
    shape: tuple[int, int]
    parts: tuple[torch.Tensor, ...]
    order_D: torch.Tensor | None

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.parts[0].device

    def apply(self, x_TD: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
        """`x_TD` times the transposed matrix, plus bias: [T, F] in the dtype of `x_TD`."""
        return decoded_product(self, x_TD, bias_F)

    def decoded(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix itself, [F, D]."""
        return decoded_matrix(self, dtype)

    def encoded(self) -> Encoded | None:
        """See `DecodableRows`."""
        return self.layout.encoded(self.parts, self.shape, self.order_D)

    def decoded_rows(self, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [first, last), [F, D]: (number - zero) * scale in the dtype of the scales, then cast.

        The libraries compute in the dtype of the scales. Where that has 16 bits, the product of 9 and at most 11 bits
        is exact in float32, which CPUs compute in faster, and is rounded once too: the bits are the same.
        """
        numbers_FD, zeros_FG, scales_FG = self.layout.rows_of(self.parts, first, last)
        shape_FGd = (*scales_FG.shape, -1) if self.order_D is None else (last - first, self.shape[1], 1)
        values = numbers_FD[:, : self.shape[1]].to(torch.float32).view(shape_FGd)
        values.sub_(zeros_FG if isinstance(zeros_FG, int) else self._spread(zeros_FG)).mul_(self._spread(scales_FG))
        rounded = values.to(scales_FG.dtype)
        if rounded.dtype != dtype:  # by way of float32: CPUs are slow from one dtype of 16 bits to the other
            rounded = values.copy_(rounded).to(dtype)
        return rounded.view(last - first, self.shape[1])

    def _spread(self, groups_FG: torch.Tensor) -> torch.Tensor:
        """In float32, to be broadcast over the columns of each group or over one."""
        values = groups_FG.to(torch.float32)
        return (values if self.order_D is None else values.index_select(1, self.order_D)).unsqueeze(-1)


class StoredIntegers:
    """See `StoredMatrix`. `part_steps` says how many rows of the matrix share one of a part; 0: all do."""

    def __init__(
        self,
        layout: Layout,
        shape: tuple[int, ...],
        parts: tuple[TensorRange, ...],
        order: tuple[TensorRange, ...] = (),
        part_steps: tuple[int, ...] | None = None,
    ) -> None:
        self._layout, (self.rows, self.columns), self._parts, self._order = layout, shape, parts, order
        self.tensors, self.short, self.dtype = parts + order, parts[0].short, stored_dtype(parts[1].dtype)
        self.form = layout, len(order)
        self._steps, self.row_step = part_steps, None if part_steps is None else max(part_steps)

    def slice(self, first: int, last: int) -> "StoredIntegers":
        """Rows [first, last), with the rows of each part that they share."""
        cuts = zip(self._parts, self._steps or (), strict=True)
        parts = tuple(part.rows(first // step, -(-last // step)) if step else part for part, step in cuts)
        return StoredIntegers(self._layout, (last - first, self.columns), parts, self._order, self._steps)

    def scratch_bytes(self, dtype: torch.dtype) -> int:
        """Of the rows that are decoded at once."""
        return decoding_bytes((self.rows, self.columns))

    def over(self, views: Mapping[str, torch.Tensor]) -> IntegerMatrix:
        """What multiplies, over the tensors of its group by short name."""
        parts = tuple(views[part.short] for part in self._parts)
        order_D = views[self._order[0].short] if self._order else None
        return IntegerMatrix(self._layout, (self.rows, self.columns), parts, order_D)


def grouping(group: int | None) -> str:
    """What shares a scale, as people read it."""
    return f"groups of {group}" if group else "one scale a row"


def group_count(spec: TensorSpec, group: int | None, format_name: str) -> int:
    """How many groups a row of the matrix has. Raises ConfigError where the last would be narrower than the others."""
    columns = spec.shape[1]
    if columns % (group or columns):
        raise ConfigError(
            f"{spec.name}: {format_name}: need columns that the group size divides, have {columns}; "
            "use the quantization_config of these weights"
        )
    return columns // (group or columns)


def group_order(order: TensorRange, groups: int) -> tuple[TensorRange, ...]:
    """The header with the group of each column, as a part that travels; none where equal groups lie in order.

    Raises CheckpointError where it names a group that there is not, or leaves one out: of zeros alone exllama makes
    groups in order, and gptqmodel's torch kernel one group for all.
    """
    if not order.content:
        return (order,)
    numbers_D = header_numbers(order)
    lowest, highest, columns = int(numbers_D.min()), int(numbers_D.max()), len(numbers_D)
    if lowest < 0 or highest >= groups or not numbers_D.bincount(minlength=groups).all():
        raise CheckpointError(
            f"{order.file}: tensor {order.name!r}: need all groups from 0 to {groups - 1}, have {lowest} to {highest} "
            "or not all of these; fetch the file again, or the quantization_config of these weights"
        )
    if columns % groups == 0 and torch.equal(numbers_D, torch.arange(columns) // (columns // groups)):
        return ()
    return (replace(order, content=b""),)


def header_numbers(header: TensorRange) -> torch.Tensor:
    """The whole numbers of a header, as int64."""
    return torch.frombuffer(bytearray(header.content), dtype=stored_dtype(header.dtype)).to(torch.int64)
