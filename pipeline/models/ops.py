"""The small operations that all halves of a layer share: on a GPU one kernel each, where Triton can make it.

Shape letters in names: T tokens of this pass, D hidden, F rows of a matrix, N heads, H channels of a head, A of all
heads.
"""

import functools
import math
from collections.abc import Callable
from types import ModuleType

import torch
from torch.nn import functional

from pipeline.models.feed_forwards import Activation, Clamp
from pipeline.models.layers import NormStyle
from pipeline.models.rotary import Rotary, rotate
from pipeline.models.triton_kernels import kernels_of

GELU_SLOPE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, style: NormStyle = "plain") -> torch.Tensor:
    """Root mean square norm over the last axis (arXiv 1910.07467), in fp32 inside; shape and dtype stay."""
    if kernels := _kernels(x.device, x.dtype):
        fused: torch.Tensor = kernels.rms_norm(x, weight, epsilon, style)
        return fused
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + epsilon)
    if weight is None:
        return normed.to(x.dtype)
    if style == "plain":
        return weight.to(x.dtype) * normed.to(x.dtype)
    return normed.mul_(weight.float() if style == "wide" else weight.float() + 1).to(x.dtype)


def gate(gate_TF: torch.Tensor, up_TF: torch.Tensor, activation: Activation, *, by_formula: bool) -> torch.Tensor:
    """activation(gate) * up, in the memory of `gate_TF`; see `activate`."""
    if kernels := _kernels(gate_TF.device, gate_TF.dtype):
        fused: torch.Tensor = kernels.gate(gate_TF, up_TF.contiguous(), activation)
        return fused
    return activate(gate_TF, activation, by_formula=by_formula).mul_(up_TF)


def activate(x_TF: torch.Tensor, activation: Activation, *, by_formula: bool) -> torch.Tensor:
    """The activation in fp32 inside, in the memory of `x_TF`; shape and dtype stay.

    The kernels of torch compute the last elements of each thread's share with another exp or tanh. In fp32 it shows; in
    the other dtypes, where rounding nearly always hides it, only `by_formula` is without it, and takes five times as
    long.
    """
    by_formula = by_formula or x_TF.dtype is torch.float32
    match activation:
        case "relu2":
            return x_TF.relu_().square_()
        case "silu" if not by_formula:
            return functional.silu(x_TF, inplace=True)
        case "gelu_tanh" if not by_formula:
            torch.ops.aten.gelu_(x_TF, approximate="tanh")
            return x_TF
    x32_TF = x_TF.float()
    if activation == "silu":
        return x_TF.copy_(x32_TF.div_(x32_TF.neg().exp_().add_(1)))
    inner_TF = x32_TF.square().mul_(GELU_CUBE).add_(1).mul_(x32_TF).mul_(GELU_SLOPE)
    return x_TF.copy_(x32_TF.mul_(inner_TF.tanh_().add_(1)).mul_(0.5))


def clamped_gate(gate_TF: torch.Tensor, up_TF: torch.Tensor, clamp: Clamp) -> torch.Tensor:
    """See `Clamp`: gate * sigmoid(slope * gate) * (up + offset), in the memory of `gate_TF`.

    In fp32 inside, and by formula as `activate`.
    """
    if kernels := _kernels(gate_TF.device, gate_TF.dtype):
        fused: torch.Tensor = kernels.clamped_gate(gate_TF, up_TF.contiguous(), clamp)
        return fused
    gate32_TF = gate_TF.float().clamp_(max=clamp.limit)
    gate32_TF.div_(gate32_TF.mul(-clamp.slope).exp_().add_(1))
    up32_TF = up_TF.to(torch.float32, copy=True).clamp_(-clamp.limit, clamp.limit)
    return gate_TF.copy_(gate32_TF.mul_(up32_TF.add_(clamp.offset)))


def sigmoid_gate(mixed_TA: torch.Tensor, gate_TA: torch.Tensor) -> torch.Tensor:
    """mixed * sigmoid(gate), in fp32 inside and by formula as `activate`, in the memory of both."""
    if kernels := _kernels(gate_TA.device, gate_TA.dtype):
        fused: torch.Tensor = kernels.gate(gate_TA, mixed_TA, "sigmoid")
        return fused
    return mixed_TA.mul_(sigmoid(gate_TA).to(mixed_TA.dtype))


def turn_last(x_TNH: torch.Tensor, turn: Rotary) -> torch.Tensor:
    """Turn the last channels of each head, as `rotate` turns the first ones; `x_TNH` may be changed."""
    kernels = _kernels(x_TNH.device, x_TNH.dtype) if turn.interleaved and x_TNH.is_contiguous() else None
    if kernels is not None:
        fused: torch.Tensor = kernels.turn_last(x_TNH, turn.cos, turn.sin)
        return fused
    still = x_TNH.shape[-1] - turn.cos.shape[-1]
    return torch.cat((x_TNH[..., :still], rotate(x_TNH[..., still:], turn)), dim=-1)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """That of each item, in fp32 and by formula as `activate`, in the memory of `x` where that is fp32."""
    return x.float().neg_().exp_().add_(1).reciprocal_()


def infer(work: Callable[[], object]) -> None:
    """Run `work` without gradients, which torch remembers by thread: call it on the thread that computes."""
    with torch.inference_mode():
        work()


@functools.cache
def _kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    return kernels_of("pipeline.models.fused_ops", device, "norms and gates are several operations each", dtype)
