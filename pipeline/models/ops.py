"""The small operations that all halves of a layer share: on a GPU one kernel each, where Triton can make it.

Shape letters in names: T tokens of this pass, D hidden, F rows of a matrix.
"""

import functools
from collections.abc import Callable
from types import ModuleType

import torch
from torch.nn import functional

from pipeline.models.triton_kernels import kernels_of


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Root mean square norm over the last axis (arXiv 1910.07467), in fp32 inside; shape and dtype stay."""
    if kernels := _kernels(x.device, x.dtype):
        fused: torch.Tensor = kernels.rms_norm(x, weight, epsilon)
        return fused
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight.to(x.dtype) * normed.to(x.dtype)


def silu_gate(gate_TF: torch.Tensor, up_TF: torch.Tensor, *, by_formula: bool) -> torch.Tensor:
    """silu(gate) * up, in the memory of `gate_TF`; see `silu`."""
    if kernels := _kernels(gate_TF.device, gate_TF.dtype):
        fused: torch.Tensor = kernels.silu_gate(gate_TF, up_TF)
        return fused
    return silu(gate_TF, by_formula=by_formula).mul_(up_TF)


def silu(x_TF: torch.Tensor, *, by_formula: bool) -> torch.Tensor:
    """x / (1 + exp(-x)), in fp32 inside, in the memory of `x_TF`; shape and dtype stay.

    The kernel of torch computes the last elements of each thread's share with another exp. In fp32 it shows; in the
    other dtypes, where rounding nearly always hides it, only `by_formula` is without it, and takes five times as long.
    """
    if not by_formula and x_TF.dtype is not torch.float32:
        return functional.silu(x_TF, inplace=True)
    x32_TF = x_TF.float()
    return x_TF.copy_(x32_TF.div_(x32_TF.neg().exp_().add_(1)))


def infer(work: Callable[[], object]) -> None:
    """Run `work` without gradients, which torch remembers by thread: call it on the thread that computes."""
    with torch.inference_mode():
        work()


@functools.cache
def _kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    return kernels_of("pipeline.models.fused_ops", device, "norms and gates are several operations each", dtype)
