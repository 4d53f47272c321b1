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
