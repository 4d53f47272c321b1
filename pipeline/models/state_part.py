"""One tensor of what a layer keeps between passes, beside keys and values: its shape, and what it takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ALIGNMENT_BYTES = 64
"""Parts begin at multiples of it: kernels round by the address where it is odd."""


@dataclass(frozen=True, slots=True)
class StatePart:
    """One tensor of a cell."""

    shape: tuple[int, ...]
    dtype: "torch.dtype"

    @property
    def nbytes(self) -> int:
        """Return what it takes of a cell."""
        return -(-math.prod(self.shape) * self.dtype.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def part_views(parts: Sequence[StatePart], memory_CB: "torch.Tensor") -> "list[torch.Tensor]":
    """The tensors of all cells, [C, ...] each, in memory in which they lie in this order, uint8 [cells, bytes]."""
    tensors, begin = [], 0
    for part in parts:
        bytes_CB = memory_CB[:, begin : begin + math.prod(part.shape) * part.dtype.itemsize]
        tensors.append(bytes_CB.view(part.dtype).unflatten(1, part.shape))
        begin += part.nbytes
    return tensors
