"""Products of rows in bf16 with quantised matrices on a CPU that multiplies in bf16 by itself.

A sum has the same bits however many rows there are, on how many threads, and whatever decodes.
Letters in names: T tokens of this pass, D columns, F rows of a matrix.
"""

from typing import Any

import numpy as np
import torch

from pipeline.formats import cpu_vectors
from pipeline.formats.cpu_decoding import RowDecoder
from pipeline.formats.cpu_threads import share_out
from pipeline.formats.encoded import Encoded

FEW_ROWS = 4
"""So many rows are multiplied by weights that are decoded in registers; for more they are decoded first."""
PIECE_NUMBERS = 2 << 20
"""Of a matrix that a thread multiplies by at once."""


def can_multiply(x_TD: torch.Tensor) -> bool:
    """Whether there are kernels for rows like these."""
    return cpu_vectors.HAS_DOTS and x_TD.dtype == torch.bfloat16 and x_TD.shape[1] % (2 * cpu_vectors.BYTES) == 0


class Product:
    """`x_TD` times a matrix of `rows` rows, transposed, plus bias; the methods fill it in."""

    def __init__(self, x_TD: torch.Tensor, rows: int, bias_F: torch.Tensor | None) -> None:
        self._count, self._rows = len(x_TD), rows
        x_TD = x_TD.expand(2, -1) if self._count == 1 else x_TD
        self._out_TF = x_TD.new_empty(len(x_TD), rows)
        self._x, self._out = _bits(x_TD.contiguous()), _bits(self._out_TF)
        bias_F = torch.zeros(rows) if bias_F is None else bias_F.to(x_TD.dtype).to(torch.float32)
        self._to = (self._x, bias_F.numpy(), self._out)
        self._tile = FEW_ROWS if len(x_TD) >= FEW_ROWS else 2

    @property
    def result(self) -> torch.Tensor:
        """[T, F] in bf16."""
        return self._out_TF[: self._count]

    def by_decoded(self, first: int, decoded_FD: torch.Tensor) -> None:
        """Fill columns from `first` on."""
        cpu_vectors.decoded_products(self._tile)(_bits(decoded_FD), first, *self._to)

    def by_encoded(self, encoded: Encoded) -> bool:
        """Fill all, if rows are few and there is a kernel that decodes such a matrix in registers."""
        if len(self._x) > FEW_ROWS or (arguments := RowDecoder.in_registers(encoded)) is None:
            return False
        kind, how, numbers, *others = arguments
        kernel, groups = cpu_vectors.products(kind, how, self._tile), encoded.shape[1] // encoded.group
        step = max(PIECE_NUMBERS // encoded.shape[1] // 32, 1) * 32

        def work(first: int) -> None:
            kernel(numbers[first : first + step], *others, groups, first, *self._to)

        share_out(range(0, self._rows, step), work, here=True)
        return True


def _bits(rows: torch.Tensor) -> Any:
    return rows.view(torch.int16).numpy().view(np.uint16)
