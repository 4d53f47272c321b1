"""The small operations that all halves of a layer share.

Shape letters in names: T tokens of this pass, D hidden, F rows of a matrix.
"""

from collections.abc import Callable

import torch
from torch.nn import functional


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
