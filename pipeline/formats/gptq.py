"""Whole numbers of 4 or 8 bits as GPTQ stores them: transposed, and several columns share a word.

Letters in names: D columns, F rows of a matrix, W words of a row, G groups of columns that share a scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.formats.encoded import Encoded
from pipeline.formats.integers import (
    ORDER_DTYPES,
    SCALE_DTYPES,
    StoredIntegers,
    group_order,
    grouping,
)
from pipeline.formats.tensors import TensorRange, TensorSpec
from pipeline.formats.words import transposed, unpacked

ONES = {4: 0x11111111, 8: 0x01010101}
"""A word of ones, by bits."""


@dataclass(frozen=True, slots=True)
class Gptq:
    """See `Format`. What is decoded equals gptqmodel's torch kernel, which heeds g_idx with and without desc_act.

    Version 1 stores zeros as words of which a word of ones was taken: a zero of 0 borrows from the next. That kernel
    adds the word again. gptqmodel's own dequantising converter adds to each number apart instead, and is not followed.
    """

    bits: int
    group: int | None
    version: int = 1

    @property
    def name(self) -> str:
        """The name of the format in messages."""
        return f"GPTQ int{self.bits}, {grouping(self.group)}"

    def stored_as(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """Numbers, scales, zeros and the group of each column. Last words and the last group may be partly filled."""
        (rows, columns), per_word = spec.shape, 32 // self.bits
        groups = -(-columns // (self.group or columns))
        return (
            spec.part("", "qweight", (-(-columns // per_word), rows), ("I32",)),
            spec.part("scale", "scales", (groups, rows), SCALE_DTYPES),
            spec.part("zeros", "qzeros", (groups, -(-rows // per_word)), ("I32",)),
            spec.part("order", "g_idx", (columns,), ORDER_DTYPES, is_header=True),
        )

    def stored(self, spec: TensorSpec, tensors: tuple[TensorRange, ...]) -> StoredIntegers:
        """The matrix over what was found, in the order of `stored_as`."""
        *parts, order = tensors
        return StoredIntegers(self, spec.shape, (*parts,), group_order(order, parts[1].shape[0]))

    def rows_of(
        self, parts: Sequence[torch.Tensor], first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor | int, torch.Tensor]:
        """See `Layout`."""
        numbers_WF, scales_GF, zeros_GW = parts
        per_word = 32 // self.bits
        zeros_GW = zeros_GW[:, first // per_word : -(-last // per_word)]
        zeros_GF = unpacked(zeros_GW + ONES[self.bits] if self.version == 1 else zeros_GW, self.bits)
        numbers_FD = unpacked(transposed(numbers_WF[:, first:last]), self.bits)
        return numbers_FD, zeros_GF.T[: last - first], scales_GF[:, first:last].T

    def encoded(self, parts: Sequence[torch.Tensor], shape: tuple[int, int], order_D: torch.Tensor | None) -> Encoded:
        """See `DecodableRows`."""
        words_FW, scales_FG, zeros_WG = (part.T for part in parts)
        kind: Literal["int4", "uint8"] = "int4" if self.bits == 4 else "uint8"
        return Encoded(
            kind,
            shape,
            words_FW,
            scales_FG,
            shape[1] // scales_FG.shape[1],
            scales_FG.dtype,
            zeros=zeros_WG,
            per_zero=32 // self.bits,
            added=ONES[self.bits] if self.version == 1 else 0,
            order=order_D,
        )
