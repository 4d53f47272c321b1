"""What a sequence keeps of a recurrent layer between passes: a slot of a fixed size, whatever its length.

Slots lie one behind another in the memory of a layer. Each holds, of one sequence:

* the matrix that the delta rule changes, fp32;
* the last inputs of the convolution, as the projection gave them, the newest last;
* on a CPU, so that a prompt may be cut anywhere, the inputs of the tokens since the last edge of a chunk as well, which
  the matrix does not hold yet: rows of the convolution in front of those, and their gates.

Shape letters in names: S slots, B bytes of a slot, R rows that are kept.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch

from pipeline.models.layers import DeltaNet

CHUNK = 16
"""Tokens of a prompt that a CPU computes together, from a multiple of it on. It divides the tokens of a KV block, so
that nothing is carried at an edge of a block."""
ALIGNMENT_BYTES = 64
"""Parts begin at multiples of it: kernels round by the address where it is odd."""


@dataclass(frozen=True, slots=True)
class StatePart:
    """One tensor of a slot."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """What it takes of a slot."""
        return -(-math.prod(self.shape) * self.dtype.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@dataclass(frozen=True, slots=True)
class StateParts:
    """The tensors of a slot, in the order in which they lie there.

    `matrix` is [key heads, key channels, channels of the value heads of that key head], `inputs` [R, channels of the
    convolution], and `gates` [R, two for each value head].
    """

    matrix: StatePart
    inputs: StatePart
    gates: StatePart

    @classmethod
    def of(cls, kind: DeltaNet, dtype: torch.dtype, *, carries: bool) -> Self:
        """Those of a layer that computes in `dtype`; a CPU `carries` the inputs of tokens, a GPU does not."""
        carried = CHUNK - 1 if carries else 0
        wide = kind.value_heads // kind.key_heads * kind.value_dim
        return cls(
            StatePart((kind.key_heads, kind.key_dim, wide), torch.float32),
            StatePart((carried + kind.kernel - 1, kind.channels), dtype),
            StatePart((carried, 2 * kind.value_heads), dtype),
        )

    @property
    def nbytes(self) -> int:
        """The bytes of a slot, which its owner may round up."""
        return self.matrix.nbytes + self.inputs.nbytes + self.gates.nbytes

    def view(self, memory_SB: torch.Tensor) -> "LayerState":
        """The state of a layer in its memory, uint8 [slots, bytes of a slot]."""
        tensors, begin = [], 0
        for part in (self.matrix, self.inputs, self.gates):
            bytes_SB = memory_SB[:, begin : begin + math.prod(part.shape) * part.dtype.itemsize]
            tensors.append(bytes_SB.view(part.dtype).unflatten(1, part.shape))
            begin += part.nbytes
        return LayerState(*tensors)


@dataclass(frozen=True, slots=True)
class LayerState:
    """The parts of all slots of one layer, [S, ...] each, as `StateParts` says; they are views of its memory."""

    matrices: torch.Tensor
    inputs: torch.Tensor
    gates: torch.Tensor
