"""What models multiply with, whatever the format: the surface that the siblings of this room share.

A format is a file with three classes: a `Format`, which is one checked set of its options, a `StoredMatrix`, known
before any byte moves, and a `Matrix` over what was read.
Letters in names: T tokens of this pass, D columns, F rows of a matrix.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from pipeline.formats.tensors import TensorRange, TensorSpec


class Matrix(Protocol):
    """A matrix over the slot that holds it now; made when its group has come into another slot."""

    def apply(self, x_TD: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
        """`x_TD` times the transposed matrix, plus bias: [T, F] in the dtype of `x_TD`."""

    def decoded(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix itself, [F, D], which must not be changed: it may lie in the slot."""

    def decoded_rows(self, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [first, last), as a copy. `first` is a multiple of 32."""


class StoredMatrix(Protocol):
    """A matrix, or some of its rows, in the files of a checkpoint.

    Attributes:
        short: its name inside the group.
        rows: how many it has.
        columns: how many each of them has, once it is decoded.
        tensors: what is read for it.
        dtype: what it is computed in where neither the settings nor config.json say so.
    """

    short: str
    rows: int
    columns: int
    tensors: tuple[TensorRange, ...]
    dtype: torch.dtype

    @property
    def form(self) -> Hashable:
        """Equal for matrices whose tensors, if they are of the same dtypes and shapes, are decoded alike."""

    @property
    def row_step(self) -> int | None:
        """Rows may be cut at multiples of it; None where those of a row do not lie together, so that none can be."""

    def slice(self, first: int, last: int) -> Self:
        """Rows [first, last) of it; `first` is a multiple of `row_step`, and `last` is one or the last row's end."""

    def scratch_bytes(self, dtype: torch.dtype) -> int:
        """What a product in `dtype` takes beside the stored tensors, the hidden states and the result."""

    def over(self, views: Mapping[str, torch.Tensor]) -> Matrix:
        """What multiplies, over the tensors of its group by short name."""


class Format(Protocol):
    """How matrices are stored: one instance is one set of options, which have been checked."""

    @property
    def name(self) -> str:
        """Its name in messages, with the options that tell it from others: "compressed-tensors int4, groups of 128"."""

    def stored_as(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The tensors that a checkpoint must hold for the matrix of `spec`, whose shape is [F, D] (see `part` there).

        Raises ConfigError where the options do not fit that shape.
        """

    def stored(self, spec: TensorSpec, tensors: tuple[TensorRange, ...]) -> StoredMatrix:
        """The matrix over what was found, in the order of `stored_as`. Raises CheckpointError for a wrong header."""


FormatOf = Callable[[str], Format]
"""The format of the matrix that has this name in the checkpoint."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one group in the slot that it is in: all tensors, and what multiplies, by short name."""

    tensors: Mapping[str, torch.Tensor]
    matrices: Mapping[str, Matrix]

    def project(self, short: str, x_TD: torch.Tensor) -> torch.Tensor:
        """The product with the matrix of that name, and its bias where the group has one."""
        return self.matrices[short].apply(x_TD, self.bias(short))

    def bias(self, short: str) -> torch.Tensor | None:
        """That of the matrix of that name."""
        return self.tensors.get(f"{short}_bias")
