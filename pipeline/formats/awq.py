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
from pipeline.formats.words import by_row

PER_WORD = 8


@dataclass(frozen=True, slots=True)
class Awq:
    """See `Format`. What is decoded equals AutoAWQ's own torch code, and compressed-tensors' converter."""

    group: int | None

    @property
    def name(self) -> str:
        """The name of the format in messages."""
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
