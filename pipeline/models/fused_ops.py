"""The operations between the products of a layer, each in one launch: Triton kernels for what `ops` says in torch.

They round where that does. A norm adds up in another order, and exp is another one: so in bf16 and fp16 few items
differ from those of torch, by one in their last place, and in fp32 many do, by few.
"""

import functools
from typing import Literal

import torch
import triton

from pipeline.formats.early_launches import early
from pipeline.models import row_kernels
from pipeline.models.feed_forwards import Activation, Clamp
from pipeline.models.layers import NormStyle

ITEMS = 2048
"""About so many items are enough for a program."""


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Compile and run the kernels for a few items. Raises whatever Triton raises."""
    zeros = functools.partial(torch.zeros, 2, 64, dtype=dtype, device=device)
    rms_norm(zeros(), zeros()[0], 1.0, "plain")
    gate(zeros(), zeros(), "silu")
    torch.cuda.synchronize(device)


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, style: NormStyle) -> torch.Tensor:
    """See `ops.rms_norm`."""
    x, size = x.contiguous(), x.shape[-1]
    normed, width = torch.empty_like(x), triton.next_power_of_2(size)
    rows, at_once = x.numel() // size, max(1, ITEMS // width)
    warps = min(max(width // 512, 4), 16)
    row_kernels.rms_norm[(triton.cdiv(rows, at_once),)](
        x,
        weight,
        normed,
        rows,
        epsilon,
        STYLE=style,
        ITEMS=size,
        D=width,
        R=at_once,
        num_warps=warps,
        **early(x.device),
    )
    return normed


def gate(gate_TF: torch.Tensor, other_TF: torch.Tensor, activation: Activation | Literal["sigmoid"]) -> torch.Tensor:
    """See `ops.gate` and `ops.sigmoid_gate`: the activation of the gate times the other, in the memory of the gate."""
    items = gate_TF.numel()
    row_kernels.gate[(triton.cdiv(items, ITEMS),)](
        gate_TF, other_TF, items, ACTIVATION=activation, J=ITEMS, **early(gate_TF.device)
    )
    return gate_TF


def clamped_gate(gate_TF: torch.Tensor, up_TF: torch.Tensor, clamp: Clamp) -> torch.Tensor:
    """See `ops.clamped_gate`."""
    items = gate_TF.numel()
    row_kernels.clamped_gate[(triton.cdiv(items, ITEMS),)](
        gate_TF, up_TF, items, clamp.limit, clamp.slope, clamp.offset, J=ITEMS, **early(gate_TF.device)
    )
    return gate_TF


def turn_last(x_TNH: torch.Tensor, cos_T1C: torch.Tensor, sin_T1C: torch.Tensor) -> torch.Tensor:
    """See `ops.turn_last`: the last channels, in pairs of neighbours, in the memory of `x_TNH`."""
    (tokens, heads, size), turned = x_TNH.shape, cos_T1C.shape[-1]
    pairs = triton.next_power_of_2(turned // 2)
    at_once = max(1, ITEMS // (2 * pairs))
    row_kernels.turn_last[(triton.cdiv(tokens * heads, at_once),)](
        *(x_TNH, cos_T1C, sin_T1C, tokens * heads, heads),
        SIZE=size,
        TURNED=turned,
        P=pairs,
        R=at_once,
        enable_fp_fusion=False,
        **early(x_TNH.device),
    )
    return x_TNH
