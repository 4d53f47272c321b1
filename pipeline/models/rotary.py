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
    """The turns of the positions of one pass, fp32, [T, 1, C]: the middle axis broadcasts over heads.

    `growth` is what queries are multiplied by, [T, 1, 1].
    """

    cos: torch.Tensor
    sin: torch.Tensor
    growth: torch.Tensor | None = None
    interleaved: bool = False

    def copy_(self, other: "Rotary") -> None:
        """Take over the numbers of another one of the same rope, in place."""
        self.cos.copy_(other.cos)
        self.sin.copy_(other.sin)
        if self.growth is not None and other.growth is not None:
            self.growth.copy_(other.growth)


def rotary(
    rope: Rope, positions_T: torch.Tensor, lengths: Sequence[int] = (), usual_C2: torch.Tensor | None = None
) -> Rotary:
    """The rotary embedding of these positions, computed once per pass.

    `lengths` has for each token the `rope_length` of its sequence; none may be given where all are 0. Then `usual_C2`
    may be, the frequencies of length 0: a caller that repeats the kernels keeps them at their address.
    Source: RoFormer (arXiv 2104.09864) in the forms of transformers, which set the rounding too.
    """
    runs = [(length, len(list(run))) for length, run in itertools.groupby(lengths)] or [(0, len(positions_T))]
    if usual_C2 is None or any(lengths):
        usual_C2 = torch.cat([_frequencies(rope, length, positions_T).expand(rows, -1) for length, rows in runs])
    angles_TC2 = positions_T.float().unsqueeze(1) * usual_C2
    angles_TC = angles_TC2.repeat_interleave(2, 1) if rope.interleaved else angles_TC2.repeat(1, 2)
    factor, growth = attention_factor(rope), None
    if rope.query_growth is not None:
        beta, original = rope.query_growth
        steps_T = torch.floor(positions_T.clamp(min=0) / original)
        growth = (1 + beta * torch.log(1 + steps_T)).view(-1, 1, 1)
    cos, sin = (turned.unsqueeze(1) * factor for turned in (angles_TC.cos(), angles_TC.sin()))
    return Rotary(cos, sin, growth, rope.interleaved)


def rotate(x_TNH: torch.Tensor, turn: Rotary) -> torch.Tensor:
    """Turn each head of each token by the angles of its position. Shape and dtype stay."""
    cos_T1C, sin_T1C = turn.cos.to(x_TNH.dtype), turn.sin.to(x_TNH.dtype)
    channels = cos_T1C.shape[-1]
    x_TNC, rest = x_TNH[..., :channels], x_TNH[..., channels:]
    if turn.interleaved:
        partners = torch.stack((-x_TNC[..., 1::2], x_TNC[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = x_TNC.chunk(2, dim=-1)
        partners = torch.cat((-second, first), dim=-1)
    turned = x_TNC * cos_T1C + partners * sin_T1C
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def rotate_queries(q_TNH: torch.Tensor, turn: Rotary) -> torch.Tensor:
    """The same of queries, which may grow with the position."""
    turned = rotate(q_TNH, turn)
    return turned if turn.growth is None else turned * turn.growth.to(turned.dtype)


def _frequencies(rope: Rope, length: int, positions_T: torch.Tensor) -> torch.Tensor:
    return frequencies(rope, rope_length(rope, length), positions_T.device)
