"""Products of rows in bf16 with matrices, quantised or in bf16, on a CPU that multiplies in bf16 by itself.

A sum has the same bits however many rows there are, on how many threads, and whatever decodes.
Letters in names: T tokens of this pass, D columns, F rows of a matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from pipeline.formats import cpu_kept, cpu_tiles, cpu_waiting
from pipeline.formats.cpu_decoding import NO_MEANINGS, RowDecoder, TileMatrix
from pipeline.formats.cpu_instructions import BYTES, HAS_DOTS
from pipeline.formats.cpu_team import do_together, entry
from pipeline.formats.cpu_threads import share_out
from pipeline.formats.encoded import FEW_ROWS, Encoded

TILES, WIDE_TILES = (1, 2, 4), (1, 2, 4, cpu_tiles.WIDE_TOKENS)
"""So many rows are multiplied at once, by what lies in bf16 and by what is decoded in registers."""
PIECE_NUMBERS = 1 << 17
"""Of a matrix that a thread claims at once: some microseconds of one row."""
THREAD_NUMBERS, MOST_THREADS = 512 << 10, 16
"""Of matrices for which another thread is woken up, which takes about as long as multiplying by so many, and how many
threads are."""
STEP_ROWS, STEPS = 32, 8
"""Rows of a matrix in bf16 that a thread multiplies many rows by at a time: so many, or in about so many steps."""
GROUPED_ROWS = 64
"""The same for each of several matrices, and few rows."""
Work: TypeAlias = tuple[Sequence[int], object]
"""What a team does, and what must stay in memory meanwhile."""


def can_multiply(x_TD: torch.Tensor) -> bool:
    """Whether there are kernels for rows like these."""
    return bool(HAS_DOTS) and x_TD.dtype == torch.bfloat16 and x_TD.shape[1] % (2 * BYTES) == 0


class Product:
    """`x_TD` times a matrix of `rows` rows, transposed, plus bias; the methods fill it in."""

    def __init__(self, x_TD: torch.Tensor, rows: int, bias_F: torch.Tensor | None) -> None:
        bias_F = torch.zeros(rows) if bias_F is None else bias_F.to(x_TD.dtype).to(torch.float32)
        self._rows, self.result = rows, x_TD.new_empty(len(x_TD), rows)
        self._x, out = x_TD.contiguous(), self.result
        if len(x_TD) == 2 and not _bits(self._x)[1].any():  # zeros: torch's products take no single row
            self._x, out, self.result[1] = self._x[:1], out[:1], bias_F
        self._to = (self._x, bias_F, out)
        self.tiles = _tiles(len(self._x))

    def by_decoded(self, first: int, decoded_FD: torch.Tensor) -> None:
        """Fill columns from `first` on, on several threads but where this is one of these."""
        rows, threads = len(decoded_FD), torch.get_num_threads()
        step = max(STEP_ROWS, rows // STEPS // threads // STEP_ROWS * STEP_ROWS) if threads > 1 else rows
        kernel, (x_TD, bias_F, out_TF) = cpu_tiles.decoded_products(self._tile(TILES)), self._to
        to = (_bits(x_TD), bias_F.numpy(), _bits(out_TF))
        share_out(range(0, rows, step), lambda at: kernel(_bits(decoded_FD[at : at + step]), first + at, *to))

    def by_encoded(self, encoded: Encoded) -> bool:
        """Fill all, if rows are few and there is a kernel that decodes such a matrix in registers."""
        if (work := self.work_by(encoded)) is None:
            return False
        _do([work], encoded.shape[0] * encoded.shape[1] * self.tiles)
        return True

    def work_by(self, encoded: Encoded) -> Work | None:
        """What fills all; None where there is none."""
        if len(self._x) > FEW_ROWS or (arguments := RowDecoder.in_registers(encoded)) is None:
            return None
        return self._work(*arguments, WIDE_TILES)

    def by_dense(self, weight_FD: torch.Tensor) -> None:
        """Fill all, by a matrix in bf16 without gaps."""
        rows, columns = weight_FD.shape
        if len(self._x) <= FEW_ROWS:
            weights = TileMatrix(weight_FD, NO_MEANINGS, NO_MEANINGS, NO_MEANINGS, 0, columns // 2, 1)
            _do([self._work(cpu_tiles.DENSE, 0, 0, weights, TILES)], rows * columns * self.tiles)
        else:
            self.by_decoded(0, weight_FD)

    def _work(self, kind: int, how: int, scaled: int, weights: TileMatrix, tiles: Sequence[int]) -> Work:
        step = max(PIECE_NUMBERS // self._x.shape[1] // 32, 1) * 32
        words = weights.words(step, *self._to)
        return (entry(cpu_tiles.products(kind, how, scaled, self._tile(tiles))), *words), weights

    def _tile(self, tiles: Sequence[int]) -> int:
        return max(tile for tile in tiles if tile <= max(len(self._x), 1))


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
    _do(known, sum(one.shape[0] * one.shape[1] for one in matrices) * filling[0].tiles)
    return [one.result for one in filling]


def dense_product(weight_FD: torch.Tensor, x_TD: torch.Tensor, bias_F: torch.Tensor | None) -> torch.Tensor:
    """`x_TD` times a matrix in bf16, transposed, plus bias."""
    filling = Product(x_TD, len(weight_FD), bias_F)
    filling.by_dense(weight_FD)
    return filling.result


def compile_dense() -> None:
    """Make the kernels for matrices in bf16 ready. Another process compiles them where they are not kept yet."""
    source = f"from {__name__} import multiply_once; multiply_once()"
    cpu_kept.load(cpu_tiles.grouped_products(cpu_tiles.DENSE, 0, 0), cpu_waiting.SIGNATURE, source)
    multiply_once()


def multiply_once() -> None:
    """Call each kernel for matrices in bf16 with a small one; that of several last, so that all are kept when it is."""
    columns = 2 * BYTES
    weight_FD = torch.zeros(STEP_ROWS, columns, dtype=torch.bfloat16)
    for count in (*TILES, FEW_ROWS + 1):
        dense_product(weight_FD, torch.ones(count, columns, dtype=torch.bfloat16), None)
    multiply_one_of_several(weight_FD)


def multiply_one_of_several(matrix: torch.Tensor | Encoded) -> None:
    """Call the kernel for several matrices with this one, if there is one for it."""
    rows, columns = matrix.shape
    if (one := one_of_several(matrix)) is not None:
        grouped_products(one.alike, [(*one.addresses, 0, 0, 1)], torch.zeros(1, columns, dtype=torch.bfloat16), rows)


Alike: TypeAlias = tuple[int, int, int, tuple[int, int, int, int]]
"""Kind, how, how it is scaled, and shape, as `cpu_tiles.grouped_products` has them."""


@dataclass(frozen=True, slots=True)
class OneOfSeveral:
    """A matrix as `grouped_products` takes it: `alike` are those of one call; and where numbers and scales lie."""

    alike: Alike
    addresses: tuple[int, int]


def one_of_several(matrix: torch.Tensor | Encoded) -> OneOfSeveral | None:
    """One in FP8, or in bf16 for which `dense_product` is right; None where the kernels do not take it as it lies."""
    rows, columns = matrix.shape
    if rows % cpu_tiles.TILE_ROWS_OF_ONE:
        return None
    if isinstance(matrix, torch.Tensor):
        at = matrix.data_ptr()
        return OneOfSeveral((cpu_tiles.DENSE, 0, 0, (rows, columns, 1, 0)), (at, at))
    if (found := RowDecoder.in_place(matrix)) is None:
        return None
    how, scaled, shift = found
    shape = (rows, columns, columns // matrix.group, shift)
    addresses = matrix.numbers.data_ptr(), matrix.scales.data_ptr()
    return OneOfSeveral((cpu_tiles.FP8_KIND, how, scaled, shape), addresses)


def grouped_products(
    alike: Alike, lines: Sequence[tuple[int, int, int, int, int]], x_PD: torch.Tensor, columns: int
) -> torch.Tensor:
    """What matrices that are `alike` give, [P, `columns`], with the bits of `Product`; each has few rows of its own.

    Of each: its two addresses, the column where its products begin, and where its rows begin and end. What none gives
    is not defined. Threads wake up and wait for each other once for all.
    """
    result_PF, (kind, how, scaled, shape) = x_PD.new_empty(len(x_PD), columns), alike
    x_PD, table, bias_F = x_PD.contiguous(), torch.tensor(lines), torch.zeros(columns)
    kernel, tensors = cpu_tiles.grouped_products(kind, how, scaled), (table, x_PD, bias_F, result_PF)
    words = (*shape, GROUPED_ROWS, len(table), *result_PF.shape, *[one.data_ptr() for one in tensors])
    numbers = shape[0] * shape[1] * sum(_tiles(end - begin) for *_, begin, end in lines)
    do_together([(entry(kernel), *words)], _threads(numbers))
    return result_PF


def _tiles(rows: int) -> int:
    """How often a matrix is multiplied by for so many rows of x: by up to four it takes hardly longer than by one."""
    return -(-rows // cpu_tiles.TILE_ROWS)


def _threads(numbers: int) -> int:
    return min(1 + numbers // THREAD_NUMBERS, MOST_THREADS)


def _do(works: Sequence[Work], numbers: int) -> None:
    """All of it; numbers are counted once for each of their `_tiles`."""
    do_together([words for words, _ in works], _threads(numbers))


def _bits(rows: torch.Tensor) -> Any:
    return rows.view(torch.int16).numpy().view(np.uint16)
