"""How a stored matrix looks to kernels, of a GPU or a CPU.

Letters in names: T tokens of this pass, D columns, F rows of a matrix.
"""

from dataclasses import dataclass
from typing import Literal

import torch

FEW_ROWS = 24
"""For no more a CPU decodes weights in registers; else before that."""
GPU_BLOCK_BYTES = 32 << 20
"""Of rows that are decoded into scratch at once, which large GPUs keep in their L2 cache."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A matrix, [F, D]: (number - zero) * scale, rounded to `rounds_to`. Its parts may be transposed views.

    Attributes:
        kind: of its numbers. Eight of 4 bits or four of 8 share a word of int32, the first one lowest, or of "nf4" the
            second one. An "awq" matrix has its numbers, scales and zeros as stored, transposed; a word has rows 0, 2,
            4, 6, 1, 3, 5, 7 of 8.
        numbers: words, [F, D / 8] or [F, D / 4]; the last one may be partly filled.
        scales: one for `block_rows` rows and `group` columns.
        scaled: what makes a scale: itself; the exponent of a power of two; "coded", what `code` has for a byte; or that
            times one `outer` for 256 scales, plus `offset`, "nested".
        zeros: that of all numbers, or one for each group. A word has those of `per_zero` rows, once `added` is added.
        order: the group of each column, where groups do not lie in order.
        levels: of nf4, what its numbers stand for.
    """

    kind: Literal["int4", "fp4", "nf4", "awq", "int8", "uint8", "fp8"]
    shape: tuple[int, int]
    numbers: torch.Tensor
    scales: torch.Tensor
    group: int
    rounds_to: torch.dtype
    block_rows: int = 1
    scaled: Literal["", "exponent", "coded", "nested"] = ""
    zeros: torch.Tensor | int = 0
    per_zero: int = 1
    added: int = 0
    order: torch.Tensor | None = None
    levels: torch.Tensor | None = None
    outer: torch.Tensor | None = None
    code: torch.Tensor | None = None
    offset: float = 0.0


def as_words(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers of 8 bits, or pairs, as int32 words; a copy where they begin amid one, as a part of any length may."""
    aligned = numbers if numbers.storage_offset() % 4 == 0 else numbers.clone()
    return aligned.view(torch.int32)
