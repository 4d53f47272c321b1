"""How an expert is stored, for kernels that multiply by many: which they know, and where its parts lie in a slot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipeline.formats.decoding import encoded_of
from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.models.feed_forwards import FeedForward

NUMBERS = (torch.float32, torch.float16, torch.bfloat16)
"""What matrices that are not quantised have, and scales that are factors."""
DECODED: Mapping[str, Sequence[tuple[int, str]]] = {
    "int4": [(8, "")],
    "fp4": [(0, "exponent")],
    "fp8": [(0, ""), (0, "exponent")],
}
"""The numbers that kernels decode, each with the zeros that all of them may have, and what makes their scales."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What kernels are compiled for, or called with, beside addresses: the same for all experts of a launch."""

    kind: str
    shape: tuple[int, int]
    numbers: torch.dtype
    scales: torch.dtype
    rounds_to: torch.dtype
    row_step: int
    column_step: int = 1
    scale_step: int = 0
    group: int = 1
    block_rows: int = 1
    bias: torch.dtype | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """Where the numbers and scales of gate, up and down lie in a slot, and two biases, and how these are stored.

    In bytes; of what there is not, 0. What is `wide` is gate and up, or one matrix in which these take turns.
    """

    offsets: tuple[int, ...]
    wide: Stored
    down: Stored


def places(kind: FeedForward, weights: Weights, slot: int) -> Places | None:
    """Where an expert lies in the slot at this address; None where the kernels do not know how it is stored."""
    if kind.fused:
        if not kind.interleaved or kind.clamp is None:
            return None
        gate, down = _stored(weights, "gate_up"), _stored(weights, "down")
        up = gate
    else:
        gate, up, down = (_stored(weights, short) for short in ("gate", "up", "down"))
    if gate is None or up is None or down is None or gate[0] != up[0]:
        return None
    if not kind.fused and (not kind.gated or gate[0].bias or down[0].bias):
        return None
    biases = [0 if bias is None else bias.data_ptr() - slot for bias in (weights.bias("gate_up"), weights.bias("down"))]
    return Places((*(address - slot for one in (gate, up, down) for address in one[1]), *biases), gate[0], down[0])


def _stored(weights: Weights, short: str) -> tuple[Stored, tuple[int, int]] | None:
    """How a matrix is stored, and the addresses of its numbers and scales."""
    matrix, bias = weights.matrices[short], weights.bias(short)
    kind_of_bias = None if bias is None else bias.dtype
    if isinstance(matrix, DenseMatrix):
        weight_FD = matrix.weight_FD
        if weight_FD.dtype not in NUMBERS or not (weight_FD.is_contiguous() or weight_FD.T.is_contiguous()):
            return None
        dtype, (row_step, column_step) = weight_FD.dtype, weight_FD.stride()
        shape = (weight_FD.shape[0], weight_FD.shape[1])
        stored = Stored("dense", shape, dtype, dtype, dtype, row_step, column_step, bias=kind_of_bias)
        return stored, (weight_FD.data_ptr(), 0)
    encoded = encoded_of(matrix)
    if encoded is None or encoded.kind not in DECODED or encoded.numbers.stride(1) != 1:
        return None
    if encoded.order is not None or isinstance(encoded.zeros, torch.Tensor):
        return None
    if (encoded.zeros, encoded.scaled) not in DECODED[encoded.kind]:
        return None
    kind, row_step, per_word = encoded.kind, encoded.numbers.stride(0), 8
    numbers = torch.int32
    if kind == "fp8":
        numbers, row_step, per_word = torch.float8_e4m3fn, 4 * row_step, 1
    scales = encoded.scales.view(torch.uint8) if encoded.scaled == "exponent" else encoded.scales
    if (
        row_step * per_word != encoded.shape[1]
        or scales.dtype not in (*NUMBERS, torch.uint8)
        or (scales.shape[1] > 1 and scales.stride(1) != 1)
    ):
        return None
    steps = (row_step, 1, scales.stride(0), encoded.group, encoded.block_rows)
    stored = Stored(kind, encoded.shape, numbers, scales.dtype, encoded.rounds_to, *steps, kind_of_bias)
    return stored, (encoded.numbers.data_ptr(), scales.data_ptr())
