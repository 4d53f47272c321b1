"""What a sequence keeps of a recurrent layer between passes: a slot of a fixed size, whatever its length.

Slots lie one behind another in the memory of a layer. Each holds, of one sequence:

* the matrix that the delta rule changes, fp32;
* the last inputs of the convolution, as the projection gave them, the newest last;
* on a CPU, so that a prompt may be cut anywhere, the inputs of the tokens since the last edge of a chunk as well, which
  the matrix does not hold yet: rows of the convolution in front of those, and their gates.

Shape letters in names: S slots, B bytes of a slot, R rows that are kept, T tokens, W channels of the convolution, N of
all value heads, G gates.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch.nn.functional import pad

from pipeline.models.layers import DeltaNet
from pipeline.models.state_part import StatePart, part_views

CHUNK = 16
"""Tokens of a prompt that a CPU computes together, from a multiple of it on. It divides the tokens of a KV block, so
that nothing is carried at an edge of a block."""


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
        return LayerState(*part_views((self.matrix, self.inputs, self.gates), memory_SB))


@dataclass(frozen=True, slots=True)
class DeltaInputs:
    """What is projected of some tokens, [T, ...] each: what the convolution sees, [T, W], the gate of what comes out,
    [T, N], and the gates of the rule, [T, G]: of each value head how much is written, then of each how much is kept.
    """

    conv: torch.Tensor
    output_gate: torch.Tensor
    gates: torch.Tensor

    def rows(self, begin: int, end: int) -> "DeltaInputs":
        """Those of some of the tokens."""
        return DeltaInputs(self.conv[begin:end], self.output_gate[begin:end], self.gates[begin:end])

    def behind(self, kept: tuple[torch.Tensor, torch.Tensor], first: int, count: int, seen: int) -> "DeltaInputs":
        """So many tokens from `first` on, and for the convolution those `seen` by them; copies.

        What is `kept` of the tokens before these, for the convolution and gates, stands where `first` is below 0, and
        zeros where there is nothing.
        """
        return DeltaInputs(
            _window(kept[0], self.conv, first - seen, count + seen),
            _window(self.output_gate[:0], self.output_gate, first, count),
            _window(kept[1], self.gates, first, count),
        )


def _window(before: torch.Tensor, new: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Rows [first, first + count) of `new`, of which those below 0 are the last ones of `before`."""
    lead, end = max(-first - len(before), 0), first + count
    of_before = before[max(len(before) + first, 0) : max(len(before) + min(end, 0), 0)]
    rows = torch.cat((of_before, new[max(first, 0) : max(end, 0)]))
    return rows if len(rows) == count else pad(rows, (0, 0, lead, count - lead - len(rows)))


@dataclass(frozen=True, slots=True)
class LayerState:
    """The parts of all slots of one layer, [S, ...] each, as `StateParts` says; they are views of its memory."""

    matrices: torch.Tensor
    inputs: torch.Tensor
    gates: torch.Tensor

    @property
    def carries(self) -> bool:
        """Whether a slot has room for tokens that its matrix does not hold."""
        return self.gates.shape[1] > 0

    def begin(self, read: int, write: int, carried: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the slot `write` the matrix of the slot `read`, or one of zeros if that is -1.

        Returns copies of the inputs that are kept there, for the convolution and for the gates of so many tokens.
        """
        first = self.gates.shape[1] - carried
        inputs_RW, gates_RG = self.inputs[read, first:].clone(), self.gates[read, first:].clone()
        if read < 0:
            inputs_RW.zero_()
            self.matrices[write] = 0
        elif read != write:
            self.matrices[write] = self.matrices[read]
        return inputs_RW, gates_RG

    def keep(self, slot: int, latest: DeltaInputs) -> None:
        """Put the inputs of the latest tokens into a slot, behind what may lie there."""
        self.inputs[slot, self.inputs.shape[1] - len(latest.conv) :] = latest.conv
        self.gates[slot, self.gates.shape[1] - len(latest.gates) :] = latest.gates
