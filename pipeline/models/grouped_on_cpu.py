"""Experts with few rows each on a CPU beside another device: one call for all that are there, on threads of its own.

Letters in names: T tokens of this pass, D hidden, F channels of an expert, P places: the uses of experts by rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.formats import cpu_decoding, cpu_experts
from pipeline.formats.decoding import encoded_of
from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Matrix, Weights
from pipeline.models.feed_forwards import FeedForward
from pipeline.system.threads import Threads

MOST_THREADS = 8
"""This many threads read weights nearly as fast as a CPU can, and leave cores to those who launch, read and copy."""
FEW_ROWS = 8
"""With more rows torch multiplies as fast, or faster: here each row reads the expert from a core's first cache."""
SHORTS = ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Laid:
    """Where the matrices of an expert lie: what a kernel is compiled for, and its line of the table without places.

    `held` is memory that was made for it, and lives as long.
    """

    kind: int
    rounds: bool
    line: tuple[int, ...]
    held: object


def laid(kind: FeedForward, weights: Weights) -> Laid | None:
    """What a kernel reads an expert by; None where it does not know how that computes, or is stored."""
    if kind.fused or not kind.gated or (kind.clamp is None and kind.activation != "silu"):
        return None
    if any(weights.bias(short) is not None for short in SHORTS):
        return None
    found = [_matrix(weights.matrices[short]) for short in SHORTS]
    known = [one for one in found if one is not None]
    forms = {one.form for one in known}
    if len(known) < len(SHORTS) or len(forms) > 1 or known[0].group != known[1].group:
        return None
    ((form, rounds),) = forms
    addresses = [address for one in known for address in (one.numbers, one.scales)]
    return Laid(form, rounds, (*addresses, known[0].group, known[2].group), [one.held for one in known])


class GroupedOnCpu:
    """Multiplies by several experts of one kind in one call, which so many `threads` share."""

    def __init__(self, threads: int) -> None:
        self._others = Threads(threads - 1, "experts-beside") if threads > 1 else None
        self._count = threads - 1

    def multiply(
        self,
        kind: FeedForward,
        each: Sequence[tuple[Laid, int, int]],
        rows_TD: torch.Tensor,
        row_P: torch.Tensor,
        output_PD: torch.Tensor,
    ) -> None:
        """Multiply by experts that are stored alike, each with where its places begin and end; rows are in bf16.

        Place p has row `row_P[p]`, and row p of the output what comes out.
        """
        first, _, _ = each[0]
        table = np.array([(*one.line, begin, end) for one, begin, end in each], np.int64)
        x_TD, out_PD = rows_TD.float().numpy(), output_PD.view(torch.int16).numpy().view(np.uint16)
        clamp = np.zeros(3, np.float32)
        if (gate := kind.clamp) is not None:
            clamp[:] = gate.limit, gate.slope, gate.offset
        given: Any = (table, clamp, x_TD, row_P.numpy(), np.empty((len(row_P), kind.size), np.float32), out_PD)
        kernel = cpu_experts.multiply(first.kind, first.rounds, gate is not None)
        claimed = np.zeros(cpu_experts.CLAIMED, np.int64)
        others = [self._others.submit(kernel, claimed, *given) for _ in range(self._count) if self._others is not None]
        kernel(claimed, *given)
        # All is done: those that have begun find nothing more. To wait for them would take the interpreter lock.
        for one in others:
            one.cancel()

    def close(self) -> None:
        """End the threads."""
        if self._others is not None:
            self._others.shutdown(wait=True)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Addresses of a matrix, and how it is stored; `held` keeps memory that was made."""

    form: tuple[int, bool]
    numbers: int
    scales: int
    group: int
    held: object


def _matrix(matrix: Matrix) -> _Numbers | None:
    if isinstance(matrix, DenseMatrix):
        weight_FD = matrix.weight_FD
        if weight_FD.dtype != torch.bfloat16 or not weight_FD.is_contiguous():
            return None
        return _Numbers((cpu_experts.BF16, False), weight_FD.data_ptr(), 0, 0, None)
    encoded = encoded_of(matrix)
    if encoded is None or encoded.kind not in ("fp8", "fp4") or not encoded.numbers.is_contiguous():
        return None
    if encoded.kind == "fp4":
        if encoded.scaled != "exponent" or not encoded.scales.is_contiguous():
            return None
        held = encoded.numbers, encoded.scales
        form = cpu_experts.FP4, False  # every value is exact in bf16
        return _Numbers(form, encoded.numbers.data_ptr(), encoded.scales.data_ptr(), encoded.group, held)
    if encoded.rounds_to not in (torch.float32, torch.bfloat16):
        return None
    scales_FG = cpu_decoding.scales_of(encoded)
    rounds, held = encoded.rounds_to == torch.bfloat16, (encoded.numbers, scales_FG)
    return _Numbers((cpu_experts.FP8, rounds), encoded.numbers.data_ptr(), scales_FG.data_ptr(), encoded.group, held)
