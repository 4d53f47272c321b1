"""The rotary embedding of the tokens of one pass.

Shape letters in names: T tokens of this pass, N heads (query or kv), H head dim, C channels of a head that turn.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.models.frequencies import frequencies
from pipeline.models.ropes import Rope, attention_factor, rope_length


@dataclass(frozen=True, slots=True)
class Rotary:
    """The turns of the positions of one pass, fp32, [T, 1, C]: the middle axis broadcasts over heads."""

    cos: torch.Tensor
    sin: torch.Tensor

    def copy_(self, other: "Rotary") -> None:
        """Take over the numbers of another one, in place."""
        self.cos.copy_(other.cos)
        self.sin.copy_(other.sin)


def rotary(
    rope: Rope, positions_T: torch.Tensor, lengths: Sequence[int] = (), usual_C2: torch.Tensor | None = None
) -> Rotary:
    """The rotary embedding of these positions, computed once per pass.

    `lengths` has for each token the `rope_length` of its sequence; none may be given where all are 0. Then `usual_C2`
    may be, the frequencies of length 0: a caller that repeats the kernels keeps them at their address.
    Source: RoFormer (arXiv 2104.09864) in the half-split form of transformers, which sets the rounding too.
    """
    runs = [(length, len(list(run))) for length, run in itertools.groupby(lengths)] or [(0, len(positions_T))]
    if usual_C2 is None or any(lengths):
        usual_C2 = torch.cat([_frequencies(rope, length, positions_T).expand(rows, -1) for length, rows in runs])
    angles_TC = (positions_T.float().unsqueeze(1) * usual_C2).repeat(1, 2)
    factor = attention_factor(rope)
    return Rotary(angles_TC.cos().unsqueeze(1) * factor, angles_TC.sin().unsqueeze(1) * factor)


def rotate(x_TNH: torch.Tensor, turn: Rotary) -> torch.Tensor:
    """Turn each head of each token by the angles of its position. Shape and dtype stay."""
    first, second = x_TNH.chunk(2, dim=-1)
    cos_T1H, sin_T1H = turn.cos.to(x_TNH.dtype), turn.sin.to(x_TNH.dtype)
    return x_TNH * cos_T1H + torch.cat((-second, first), dim=-1) * sin_T1H


def _frequencies(rope: Rope, length: int, positions_T: torch.Tensor) -> torch.Tensor:
    return frequencies(rope, rope_length(rope, length), positions_T.device)
