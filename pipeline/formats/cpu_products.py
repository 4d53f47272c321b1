"""Products of rows in bf16 with quantised matrices on a CPU that multiplies in bf16 by itself.

A sum has the same bits however many rows there are, on how many threads, and whatever decodes.
Letters in names: T tokens of this pass, D columns, F rows of a matrix.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.formats import cpu_vectors
from pipeline.formats.cpu_decoding import RowDecoder
from pipeline.formats.cpu_instructions import BYTES, HAS_DOTS
from pipeline.formats.cpu_threads import work_together
from pipeline.formats.encoded import Encoded

TILES = (1, 2, 4)
"""So many rows are multiplied at once."""
FEW_ROWS = 24
"""For no more weights are decoded in registers; else before that."""
PIECE_NUMBERS = 1 << 20
"""Of a matrix that a thread claims at once: 16 us of one row."""
ALONE_NUMBERS = 2 << 20
"""Of a matrix that one thread multiplies by while another one would wake up."""


def can_multiply(x_TD: torch.Tensor) -> bool:
    """Whether there are kernels for rows like these."""
    return bool(HAS_DOTS) and x_TD.dtype == torch.bfloat16 and x_TD.shape[1] % (2 * BYTES) == 0


class Product:
    """`x_TD` times a matrix of `rows` rows, transposed, plus bias; the methods fill it in."""

    def __init__(self, x_TD: torch.Tensor, rows: int, bias_F: torch.Tensor | None) -> None:
        bias_F = torch.zeros(rows) if bias_F is None else bias_F.to(x_TD.dtype).to(torch.float32)
        self._rows, self.result = rows, x_TD.new_empty(len(x_TD), rows)
        self._x, out = _bits(x_TD.contiguous()), _bits(self.result)
        if len(x_TD) == 2 and not self._x[1].any():  # zeros, with which a single row is filled up for torch's products
            self._x, out, self.result[1] = self._x[:1], out[:1], bias_F
        self._to = (self._x, bias_F.numpy(), out)
        self._tile = max(tile for tile in TILES if tile <= max(len(self._x), 1))

    def by_decoded(self, first: int, decoded_FD: torch.Tensor) -> None:
        """Fill columns from `first` on."""
        cpu_vectors.decoded_products(self._tile)(_bits(decoded_FD), first, *self._to)

    def by_encoded(self, encoded: Encoded) -> bool:
        """Fill all, if rows are few and there is a kernel that decodes such a matrix in registers."""
        if (work := self.work_by(encoded)) is None:
            return False
        _do([work], encoded.shape[0] * encoded.shape[1])
        return True

    def work_by(self, encoded: Encoded) -> Callable[[int], bool] | None:
        """What fills all, as `work_together` takes it; None where it cannot."""
        if len(self._x) > FEW_ROWS or (arguments := RowDecoder.in_registers(encoded)) is None:
            return None
        kind, how, weights = arguments
        kernel, claimed = cpu_vectors.products(kind, how, self._tile), np.zeros(cpu_vectors.CLAIMED, np.int64)
        step = max(PIECE_NUMBERS // encoded.shape[1] // 32, 1) * 32
        return lambda patience: kernel(claimed, patience, step, weights, *self._to)


def products(
    matrices: Sequence[Encoded], x_TD: torch.Tensor, biases: Sequence[torch.Tensor | None]
) -> list[torch.Tensor] | None:
    """`x_TD` times each matrix, as `Product`; None where one of them is not decoded in registers.

    Threads wake up and wait for each other once for all.
    """
    filling = [Product(x_TD, one.shape[0], bias) for one, bias in zip(matrices, biases, strict=True)]
    works = [one.work_by(encoded) for one, encoded in zip(filling, matrices, strict=True)]
    known = [work for work in works if work is not None]
    if len(known) < len(works):
        return None
    _do(known, sum(one.shape[0] * one.shape[1] for one in matrices))
    return [one.result for one in filling]


def _do(works: Sequence[Callable[[int], bool]], numbers: int) -> None:
    """All of it, on several threads where there are that many numbers."""

    def work(patience: int) -> bool:
        for one in works[:-1]:
            one(0)
        return all(one(patience) for one in reversed(works))

    if numbers < ALONE_NUMBERS:
        work(1)
    else:
        work_together(work)


def _bits(rows: torch.Tensor) -> Any:
    return rows.view(torch.int16).numpy().view(np.uint16)
