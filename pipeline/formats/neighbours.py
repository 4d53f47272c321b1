"""Encoded matrices that lie one behind the other in memory, which are one to a kernel that multiplies by them."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from pipeline.formats.encoded import Encoded

MANY_ROWS = 8192
"""A matrix that has so many keeps a GPU busy with few warps for each row."""
EDGE_ROWS = 64
"""Another matrix may begin at a multiple of so many rows: no program has rows of two."""


def runs(matrices: Sequence[Encoded], biases: Sequence[torch.Tensor | None]) -> list[list[int]]:
    """The indices of at most three matrices that are multiplied as one each, in the order in which they lie."""
    first, *others = sorted(range(len(matrices)), key=lambda index: matrices[index].numbers.data_ptr())
    found = [[first]]
    for index in others:
        before = found[-1][-1]
        if _are_alike(matrices[before], matrices[index]) and _lie_together(
            (*_by_rows(matrices[before]), biases[before]), (*_by_rows(matrices[index]), biases[index])
        ):
            found[-1].append(index)
        else:
            found.append([index])
    return found


def joined(matrices: Sequence[Encoded]) -> Encoded:
    """The matrices of a run as one."""
    first, rows = matrices[0], sum(one.shape[0] for one in matrices)
    scale_rows = sum(len(one.scales) for one in matrices)
    zeros = first.zeros
    if isinstance(zeros, torch.Tensor):
        zeros = all_rows(zeros, sum(len(one.zeros) for one in matrices if isinstance(one.zeros, torch.Tensor)))
    numbers, scales = all_rows(first.numbers, rows), all_rows(first.scales, scale_rows)
    return replace(first, shape=(rows, first.shape[1]), numbers=numbers, scales=scales, zeros=zeros)


def all_rows(part: torch.Tensor, rows: int) -> torch.Tensor:
    """The part of the first matrix, and those behind it, as one."""
    return part.as_strided((rows, *part.shape[1:]), part.stride())


def _by_rows(matrix: Encoded) -> tuple[torch.Tensor | None, ...]:
    """Return what has rows of its own for each matrix."""
    return matrix.numbers, matrix.scales, matrix.zeros if isinstance(matrix.zeros, torch.Tensor) else None


def _are_alike(one: Encoded, other: Encoded) -> bool:
    """Whether kernels decode both in the same way, rows in rows, and share their columns out alike."""
    return (
        _decoding(one) == _decoding(other)
        and one.kind != "awq"
        and all(table is None for table in (one.order, one.levels, one.outer, one.code))
        and all(one.shape[0] % step == 0 for step in (EDGE_ROWS, one.block_rows, one.per_zero))
    )


def _decoding(one: Encoded) -> tuple[object, ...]:
    zeros = "of groups" if isinstance(one.zeros, torch.Tensor) else one.zeros
    tables = [table is None for table in (one.order, one.levels, one.outer, one.code)]
    how = (one.kind, one.shape[1], one.shape[0] >= MANY_ROWS, one.group, one.rounds_to, one.block_rows, one.scaled)
    return (*how, zeros, one.per_zero, one.added, *tables)


def _lie_together(before: Sequence[torch.Tensor | None], behind: Sequence[torch.Tensor | None]) -> bool:
    """Whether each tensor of the second ones begins where that of the first ones ends, row by row."""
    return all(
        one is other is None
        or (
            one is not None
            and other is not None
            and (one.dtype, one.stride(), one.shape[1:]) == (other.dtype, other.stride(), other.shape[1:])
            and one.stride(0) >= math.prod(one.shape[1:])
            and one.data_ptr() + len(one) * one.stride(0) * one.itemsize == other.data_ptr()
            and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        )
        for one, other in zip(before, behind, strict=True)
    )
