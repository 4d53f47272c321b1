"""The rotary embedding of the tokens of one pass.

Shape letters in names: T tokens of this pass, N heads (query or kv), H head dim.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.models.frequencies import attention_factor, frequencies
from pipeline.models.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class Rotary:
    """The turns of the positions of one pass, fp32, [T, 1, H]: the middle axis broadcasts over heads."""

    cos: torch.Tensor
    sin: torch.Tensor

    def rows(self, begin: int, end: int) -> "Rotary":
        """The turns of some of the tokens."""
        return Rotary(self.cos[begin:end], self.sin[begin:end])


def rotary(
    config: ModelConfig, positions_T: torch.Tensor, lengths: Sequence[int] = (), usual_H2: torch.Tensor | None = None
) -> Rotary:
    """The rotary embedding of these positions, computed once per pass.

    `lengths` has for each token the `rope_length` of its sequence; none may be given where all are 0. Then `usual_H2`
    may be, the frequencies of length 0: a caller that repeats the kernels keeps them at their address.
    Source: RoFormer (arXiv 2104.09864) in the half-split form of transformers, which sets the rounding too.
    """
    runs = [(length, len(list(run))) for length, run in itertools.groupby(lengths)] or [(0, len(positions_T))]
    if usual_H2 is None or any(lengths):
        usual_H2 = torch.cat([_frequencies(config, length, positions_T).expand(rows, -1) for length, rows in runs])
    angles_TH = (positions_T.float().unsqueeze(1) * usual_H2).repeat(1, 2)
    factor = attention_factor(config.rope_scaling)
    return Rotary(angles_TH.cos().unsqueeze(1) * factor, angles_TH.sin().unsqueeze(1) * factor)


def rotate(x_TNH: torch.Tensor, turn: Rotary) -> torch.Tensor:
    """Turn each head of each token by the angles of its position. Shape and dtype stay."""
    first, second = x_TNH.chunk(2, dim=-1)
    cos_T1H, sin_T1H = turn.cos.to(x_TNH.dtype), turn.sin.to(x_TNH.dtype)
    return x_TNH * cos_T1H + torch.cat((-second, first), dim=-1) * sin_T1H


def _frequencies(config: ModelConfig, length: int, positions_T: torch.Tensor) -> torch.Tensor:
    return frequencies(config.attention.head_dim, config.rope_theta, config.rope_scaling, length, positions_T.device)
