"""The small operations that all halves of a layer share.

Shape letters in names: T tokens of this pass, D hidden, N heads (query or kv), H head dim, F rows of a matrix.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional

from pipeline.models.config import LinearScaling, Llama3Scaling, ModelConfig, RopeScaling


@dataclass(frozen=True, slots=True)
class Rotary:
    """The turns of the positions of one pass, fp32, [T, 1, H]: the middle axis broadcasts over heads."""

    cos: torch.Tensor
    sin: torch.Tensor

    def rows(self, begin: int, end: int) -> "Rotary":
        """The turns of some of the tokens."""
        return Rotary(self.cos[begin:end], self.sin[begin:end])


def rotary(config: ModelConfig, positions_T: torch.Tensor) -> Rotary:
    """The rotary embedding of these positions, computed once per pass.

    Source: RoFormer (arXiv 2104.09864) in the half-split form of transformers, which sets the rounding too.
    """
    frequencies_H2 = frequencies(config.head_dim, config.rope_theta, config.rope_scaling, positions_T.device)
    angles_TH = torch.outer(positions_T.float(), frequencies_H2).repeat(1, 2)
    return Rotary(angles_TH.cos().unsqueeze(1), angles_TH.sin().unsqueeze(1))


def rotate(x_TNH: torch.Tensor, turn: Rotary) -> torch.Tensor:
    """Turn each head of each token by the angles of its position. Shape and dtype stay."""
    first, second = x_TNH.chunk(2, dim=-1)
    cos_T1H, sin_T1H = turn.cos.to(x_TNH.dtype), turn.sin.to(x_TNH.dtype)
    return x_TNH * cos_T1H + torch.cat((-second, first), dim=-1) * sin_T1H


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Root mean square norm over the last axis (arXiv 1910.07467), in fp32 inside; shape and dtype stay."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight.to(x.dtype) * normed.to(x.dtype)


def linear(x_TD: torch.Tensor, weight_FD: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
    """[T, D] times [F, D] transposed, plus bias: [T, F] in the dtype of `x_TD`. Weights of another dtype are cast."""
    weight_FD, bias_F = weight_FD.to(x_TD.dtype), None if bias_F is None else bias_F.to(x_TD.dtype)
    if x_TD.dtype is torch.float32 and x_TD.device.type == "cpu" and torch.backends.mkldnn.is_available():
        # Left to itself torch takes MKL here, whose rows depend on how many there are and how many threads share them.
        product_TF: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_TD, weight_FD, bias_F, "none", [], "")
        return product_TF
    return functional.linear(x_TD, weight_FD, bias_F)


def silu(x_TF: torch.Tensor, *, by_formula: bool) -> torch.Tensor:
    """x / (1 + exp(-x)), in fp32 inside; shape and dtype stay.

    The kernel of torch computes the last elements of each thread's share with another exp. In fp32 it shows; in the
    other dtypes, where rounding nearly always hides it, only `by_formula` is without it, and takes five times as long.
    """
    if not by_formula and x_TF.dtype is not torch.float32:
        return functional.silu(x_TF)
    x32_TF = x_TF.float()
    return (x32_TF / torch.exp(-x32_TF).add_(1)).to(x_TF.dtype)


def infer(work: Callable[[], object]) -> None:
    """Run `work` without gradients, which torch remembers by thread: call it on the thread that computes."""
    with torch.inference_mode():
        work()


@lru_cache(maxsize=32)
def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None, device: torch.device) -> torch.Tensor:
    """Radians per position of each pair of channels, [H / 2] fp32, computed on the host as transformers does."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    turns = 1.0 / theta**exponents
    match scaling:
        case LinearScaling():
            turns = turns / scaling.factor
        case Llama3Scaling():
            turns = _stretch_as_llama3(turns, scaling)
    return turns.to(device)


def _stretch_as_llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Source: `apply_scaling` of Meta's Llama 3.1 reference, with the order of operations of transformers."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    wavelengths = 2 * math.pi / frequencies
    is_long = wavelengths > scaling.original_max_positions / low
    is_short = wavelengths < scaling.original_max_positions / high
    ramp = (scaling.original_max_positions / wavelengths - low) / (high - low)
    between = (1 - ramp) * frequencies / scaling.factor + ramp * frequencies
    return torch.where(is_long, frequencies / scaling.factor, torch.where(is_short, frequencies, between))
