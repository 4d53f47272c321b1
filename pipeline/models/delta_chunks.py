"""The gated delta rule in torch (arXiv 2412.06464): chunks of tokens of one sequence, one behind the other.

Chunks have the same number of rows, of which those behind the last token are zeros, and depend on those before them by
the matrix alone: so what comes out for a token does not depend on where its prompt is cut into passes. A chunk of one
row is the plain recurrence. Elementwise functions are formulas of those that round alike everywhere in a tensor.

Shape letters in names: C tokens of a chunk, K key heads, G value heads that share a key head, H value heads, I channels
of a key, V channels of a value, W channels of the convolution, R tokens that the convolution sees.
"""

from dataclasses import dataclass
from typing import Self

import torch

from pipeline.formats.matrix import Weights
from pipeline.models.delta_state import DeltaInputs
from pipeline.models.layers import DeltaNet

L2_EPSILON = 1e-6
"""As transformers has it, whatever the config says of other norms."""
SOFTPLUS_THRESHOLD = 20.0
"""Beyond it softplus(x) is x."""


@dataclass(frozen=True, slots=True)
class DeltaRule:
    """The arithmetic of one layer, with its small weights in fp32."""

    kind: DeltaNet
    dtype: torch.dtype
    conv_RW: torch.Tensor
    rates_H: torch.Tensor
    rate_biases_H: torch.Tensor
    norm_V: torch.Tensor
    norm_epsilon: float

    @classmethod
    def of(cls, kind: DeltaNet, weights: Weights, dtype: torch.dtype, norm_epsilon: float) -> Self:
        """Take them from the weights of a layer, rounded to the dtype that is computed in, as matrices are."""
        conv_W1R, log_rates_H, rate_biases_H, norm_V = (
            weights.tensors[short].to(dtype).float() for short in ("conv", "rates", "rate_biases", "gated_norm")
        )
        conv_RW = conv_W1R.squeeze(1).t().contiguous()
        return cls(kind, dtype, conv_RW, -log_rates_H.exp(), rate_biases_H, norm_V, norm_epsilon)

    def compute(self, rows: DeltaInputs, real: int, matrix_KIN: torch.Tensor, *, moves: bool) -> torch.Tensor:
        """Return what comes out for the tokens of a chunk, [C, H * V], of which the first `real` are there.

        `rows` has the tokens before it as well for the convolution, [R - 1 + C, W]. The matrix [K, I, G * V] is
        changed if the chunk `moves` it.
        """
        kind, size = self.kind, len(rows.gates)
        heads_KG = (kind.key_heads, kind.value_heads // kind.key_heads)
        keys, chunk_KGC = kind.key_heads * kind.key_dim, (*heads_KG, size)
        convolved_CW = self._convolve(rows.conv, size)
        # Queries and keys of a head beside each other: both are multiplied by the keys, and by the matrix.
        both = _unit(convolved_CW[:, : 2 * keys].view(size, 2, kind.key_heads, kind.key_dim))
        both[:, 0] *= kind.key_dim**-0.5
        both_KDI = both.permute(2, 1, 0, 3).reshape(kind.key_heads, 2 * size, kind.key_dim)
        keys_KCI = both_KDI[:, size:]
        values_KGCV = convolved_CW[:, 2 * keys :].view(size, *heads_KG, -1).permute(1, 2, 0, 3)
        written_KGC, kept_KGC = (x_CH.t().reshape(chunk_KGC) for x_CH in self._gates(rows.gates, real))
        kept_KGC = kept_KGC.cumsum(-1)

        passed_KGCC = (kept_KGC.unsqueeze(-1) - kept_KGC.unsqueeze(-2)).tril_().exp_().tril_()
        products = torch.bmm(both_KDI, keys_KCI.mT).view(kind.key_heads, 2, 1, size, size)
        read = torch.bmm(both_KDI, matrix_KIN).view(kind.key_heads, 2, size, heads_KG[1], -1).transpose(2, 3)
        kept_KGC1 = kept_KGC.exp().unsqueeze(-1)
        old_KGCV, known_KGCV = (read[:, index] * kept_KGC1 for index in (0, 1))
        new_KGCV = (values_KGCV - known_KGCV).mul_(written_KGC.unsqueeze(-1))
        if size > 1:
            system_KGCC = products[:, 1] * passed_KGCC * written_KGC.unsqueeze(-1)
            new_KGCV = torch.linalg.solve_triangular(system_KGCC, new_KGCV, upper=False, unitriangular=True)
        seen_KGCC = products[:, 0] * passed_KGCC
        mixed_KGCV = old_KGCV.add_(torch.matmul(seen_KGCC, new_KGCV))
        if moves:
            left_KGC1 = (kept_KGC[..., -1:] - kept_KGC).exp_().unsqueeze(-1)
            moved_KCN = (new_KGCV * left_KGC1).transpose(1, 2).reshape(kind.key_heads, size, -1)
            matrix_KIN.unflatten(2, (heads_KG[1], -1)).mul_(kept_KGC1[:, :, -1:].transpose(1, 2))
            matrix_KIN.baddbmm_(keys_KCI.mT, moved_KCN)
        return self._gated(mixed_KGCV.permute(2, 0, 1, 3).reshape(size, kind.value_heads, -1), rows.output_gate)

    def _convolve(self, inputs_RW: torch.Tensor, size: int) -> torch.Tensor:
        """Each token with those before it, through silu; fp32 [C, W]."""
        x_RW = inputs_RW.float()
        sum_CW = x_RW[:size] * self.conv_RW[0]
        for index in range(1, len(self.conv_RW)):
            sum_CW += x_RW[index : index + size] * self.conv_RW[index]
        return self._rounded(_silu(self._rounded(sum_CW)))

    def _gates(self, gates_CG: torch.Tensor, real: int) -> tuple[torch.Tensor, torch.Tensor]:
        """How much of each token is written, and the logarithm of how much of the matrix is kept; fp32 [C, H] both.

        Tokens that are not there write nothing and keep all.
        """
        writing_CH, keeping_CH = gates_CG.float().chunk(2, dim=1)
        keeping_CH = keeping_CH + self.rate_biases_H
        softplus_CH = torch.where(keeping_CH > SOFTPLUS_THRESHOLD, keeping_CH, keeping_CH.exp().log1p_())
        written_CH = self._rounded(writing_CH.neg().exp_().add_(1).reciprocal_())
        kept_CH = softplus_CH.mul_(self.rates_H)
        written_CH[real:] = 0
        kept_CH[real:] = 0
        return written_CH, kept_CH

    def _gated(self, mixed_CHV: torch.Tensor, gate_CN: torch.Tensor) -> torch.Tensor:
        """The norm of each head, then the gate; [C, H * V] in the dtype that is computed in."""
        mixed_CHV = self._rounded(mixed_CHV)
        scale_CH1 = torch.rsqrt(mixed_CHV.square().mean(-1, keepdim=True) + self.norm_epsilon)
        normed_CHV = self._rounded(self._rounded(mixed_CHV.mul_(scale_CH1)).mul_(self.norm_V))
        return normed_CHV.flatten(1).mul_(_silu(gate_CN.float())).to(self.dtype)

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        """Fp32 of what the dtype that is computed in can hold."""
        return x.to(self.dtype).float()


def _silu(x: torch.Tensor) -> torch.Tensor:
    return x / x.neg().exp_().add_(1)


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Scale the last axis to length one."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + L2_EPSILON)
