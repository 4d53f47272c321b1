"""Whole numbers of compressed-tensors: pack-quantized, where several share a word, and int-quantized, a byte each.

Letters in names: F rows of a matrix, G groups of columns that share a scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.errors import CheckpointError
from pipeline.formats.encoded import Encoded, as_words
from pipeline.formats.integers import (
    ORDER_DTYPES,
    SCALE_DTYPES,
    StoredIntegers,
    group_count,
    group_order,
    grouping,
    header_numbers,
)
from pipeline.formats.tensors import TensorRange, TensorSpec
from pipeline.formats.words import transposed, unpacked


@dataclass(frozen=True, slots=True)
class PackedIntegers:
    """See `Format`. Numbers share words along a row, their zeros along a column, both with 2 ** (bits - 1) added.

    With `ordered` the columns of a group lie anywhere (weight_g_idx), which compressed-tensors reads up to 0.18.
    """

    bits: int
    group: int | None
    symmetric: bool
    ordered: bool = False

    @property
    def name(self) -> str:
        """The name of the format in messages."""
        zeros, order = "" if self.symmetric else ", zero points", ", activation order" if self.ordered else ""
        return f"compressed-tensors int{self.bits}, {grouping(self.group)}{zeros}{order}"

    def stored_as(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """Numbers and scales, and what the options add. The last word of a row or column may be partly filled."""
        (rows, columns), groups, per_word = spec.shape, group_count(spec, self.group, self.name), 32 // self.bits
        parts = [
            spec.part("", "weight_packed", (rows, -(-columns // per_word)), ("I32",)),
            spec.part("scale", "weight_scale", (rows, groups), SCALE_DTYPES),
        ]
        if not self.symmetric:
            parts.append(spec.part("zeros", "weight_zero_point", (-(-rows // per_word), groups), ("I32",)))
        parts.append(spec.part("shape", "weight_shape", (2,), ORDER_DTYPES, is_header=True))
        if self.ordered:
            parts.append(spec.part("order", "weight_g_idx", (columns,), ORDER_DTYPES, is_header=True))
        return tuple(parts)

    def stored(self, spec: TensorSpec, tensors: tuple[TensorRange, ...]) -> StoredIntegers:
        """The matrix over what was found, in the order of `stored_as`."""
        steps = (1, 1) if self.symmetric else (1, 1, 32 // self.bits)
        parts, shape, *order = tensors[: len(steps)], *tensors[len(steps) :]
        if shape.content and (have := header_numbers(shape).tolist()) != [*spec.shape]:
            raise CheckpointError(
                f"{shape.file}: tensor {shape.name!r}: need {[*spec.shape]}, have {have}; "
                "fetch the file again, or the config.json of these weights"
            )
        ordered = group_order(order[0], parts[1].shape[1]) if order else ()
        return StoredIntegers(self, spec.shape, parts, ordered, steps)

    def rows_of(
        self, parts: Sequence[torch.Tensor], first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor | int, torch.Tensor]:
        """See `Layout`."""
        numbers_FD, scales_FG = unpacked(parts[0][first:last], self.bits), parts[1][first:last]
        if self.symmetric:
            return numbers_FD, 1 << (self.bits - 1), scales_FG
        per_word = 32 // self.bits
        zeros_GF = unpacked(transposed(parts[2][first // per_word : -(-last // per_word)]), self.bits)
        return numbers_FD, zeros_GF.T[: last - first], scales_FG

    def encoded(self, parts: Sequence[torch.Tensor], shape: tuple[int, int], order_D: torch.Tensor | None) -> Encoded:
        """See `DecodableRows`."""
        words, scales_FG, *zeros = parts
        kind: Literal["int4", "uint8"] = "int4" if self.bits == 4 else "uint8"
        group, zero = shape[1] // scales_FG.shape[1], 1 << (self.bits - 1) if self.symmetric else zeros[0]
        per_zero = 32 // self.bits
        return Encoded(
            kind, shape, words, scales_FG, group, scales_FG.dtype, zeros=zero, per_zero=per_zero, order=order_D
        )


@dataclass(frozen=True, slots=True)
class Integers:
    """See `Format`. A signed byte for each number, in groups, or in rows, or (`per_tensor`) all with one scale.

    Those of 4 bits are stored so where activations are quantised, too.
    """

    group: int | None
    symmetric: bool
    per_tensor: bool = False
    bits: int = 8

    @property
    def name(self) -> str:
        """The name of the format in messages."""
        scales, zeros = "one scale" if self.per_tensor else grouping(self.group), ", zero points"
        return f"compressed-tensors int{self.bits} in bytes, {scales}{'' if self.symmetric else zeros}"

    def stored_as(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """Numbers and scales, and zeros where they are not symmetric."""
        groups = group_count(spec, self.group, self.name)
        shape, shapes = ((1,), ((1,), ())) if self.per_tensor else ((spec.shape[0], groups), ())
        parts = [
            spec.part("", "weight", spec.shape, ("I8",)),
            spec.part("scale", "weight_scale", shape, SCALE_DTYPES, shapes=shapes),
        ]
        if not self.symmetric:
            parts.append(spec.part("zeros", "weight_zero_point", shape, ("I8",), shapes=shapes))
        return tuple(parts)

    def stored(self, spec: TensorSpec, tensors: tuple[TensorRange, ...]) -> StoredIntegers:
        """The matrix over what was found, in the order of `stored_as`."""
        steps = (1, *[0 if self.per_tensor else 1] * (len(tensors) - 1))
        return StoredIntegers(self, spec.shape, tensors, part_steps=steps)

    def rows_of(
        self, parts: Sequence[torch.Tensor], first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor | int, torch.Tensor]:
        """See `Layout`."""

        def groups_of(part: torch.Tensor) -> torch.Tensor:
            return part.reshape(1, 1).expand(last - first, 1) if self.per_tensor else part[first:last]

        return parts[0][first:last], 0 if self.symmetric else groups_of(parts[2]), groups_of(parts[1])

    def encoded(
        self, parts: Sequence[torch.Tensor], shape: tuple[int, int], order_D: torch.Tensor | None
    ) -> Encoded | None:
        """See `DecodableRows`; the kernels want whole words in a row."""
        if shape[1] % 4:
            return None
        numbers_FD, *groups = parts
        scales, *zeros = (part.reshape(1, 1).expand(shape[0], 1) if self.per_tensor else part for part in groups)
        words, group = as_words(numbers_FD), shape[1] // scales.shape[1]
        return Encoded("int8", shape, words, scales, group, scales.dtype, zeros=0 if self.symmetric else zeros[0])
