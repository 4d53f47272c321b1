"""Whole numbers of 4 bits as AutoAWQ's gemm stores them: transposed, and eight outputs share a word.

Letters in names: D columns, F rows of a matrix, W words of a row, G groups of columns that share a scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.errors import ConfigError
from pipeline.formats.encoded import Encoded
from pipeline.formats.integers import SCALE_DTYPES, StoredIntegers, group_count, grouping
from pipeline.formats.tensors import TensorRange, TensorSpec

PER_WORD = 8


@dataclass(frozen=True, slots=True)
class Awq:
    """See `Format`. What is decoded equals AutoAWQ's own torch code, and compressed-tensors' converter."""

    group: int | None

    @property
    def name(self) -> str:
        """As people read it."""
        return f"AWQ int4, {grouping(self.group)}"

    def stored_as(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """Numbers, scales and zeros. Raises ConfigError too where a word would be partly filled, as AutoAWQ does."""
        (rows, columns), groups = spec.shape, group_count(spec, self.group, self.name)
        if rows % PER_WORD:
            raise ConfigError(
                f"{spec.name}: {self.name}: need a multiple of {PER_WORD} rows, have {rows}; "
                "use the quantization_config of these weights"
            )
        return (
            spec.part("", "qweight", (columns, rows // PER_WORD), ("I32",)),
            spec.part("scale", "scales", (groups, rows), SCALE_DTYPES),
            spec.part("zeros", "qzeros", (groups, rows // PER_WORD), ("I32",)),
        )

    def stored(self, spec: TensorSpec, tensors: tuple[TensorRange, ...]) -> StoredIntegers:
        """The matrix over what was found, in the order of `stored_as`."""
        return StoredIntegers(self, spec.shape, tensors)

    def rows_of(
        self, parts: Sequence[torch.Tensor], first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor | int, torch.Tensor]:
        """See `Layout`."""
        words = slice(first // PER_WORD, last // PER_WORD)
        numbers_FD, zeros_FG = (by_row(part[:, words]) for part in (parts[0], parts[2]))
        return numbers_FD, zeros_FG, parts[1][:, first:last].T

    def encoded(
        self, parts: Sequence[torch.Tensor], shape: tuple[int, int], order_D: torch.Tensor | None
    ) -> Encoded | None:
        """See `DecodableRows`; the kernels take columns by eight."""
        words_DW, scales_GF, zeros_GW = parts
        group = shape[1] // len(scales_GF)
        if group % 8 or scales_GF.dtype is torch.float32:
            return None
        return Encoded("awq", shape, words_DW, scales_GF, group, scales_GF.dtype, zeros=zeros_GW)


def by_row(words_DW: torch.Tensor) -> torch.Tensor:
    """The numbers in the words of columns, by row: [8 W, D] as uint8.

    From its lowest bits on a word has rows 0, 2, 4, 6, 1, 3, 5 and 7. With the rows as 4 a + 2 b + c, byte 2 c + a has
    those of b = 0 in its lower half and those of b = 1 in its upper one.
    """
    columns, words = words_DW.shape
    bytes_DWb = words_DW.contiguous().view(torch.uint8).view(columns, words, 4)
    bytes_WacD = bytes_DWb.permute(1, 2, 0).contiguous().view(words, 2, 2, columns).transpose(1, 2)
    return torch.stack((bytes_WacD & 15, bytes_WacD >> 4), dim=2).view(-1, columns)
