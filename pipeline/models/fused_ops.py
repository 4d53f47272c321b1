"""The operations between the products of a layer, each in one launch: Triton kernels for what `ops` says in torch.

They round where that does. A norm adds up in another order, and exp is another one: so in bf16 and fp16 few items
differ from those of torch, by one in their last place, and in fp32 many do, by few.
"""

import functools

import torch
import triton

from pipeline.formats.early_launches import early
from pipeline.models import row_kernels

ITEMS = 2048
"""About so many items are enough for a program."""


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Compile and run the kernels for a few items. Raises whatever Triton raises."""
    zeros = functools.partial(torch.zeros, 2, 64, dtype=dtype, device=device)
    rms_norm(zeros(), zeros()[0], 1.0)
    silu_gate(zeros(), zeros())
    torch.cuda.synchronize(device)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """See `ops.rms_norm`."""
    x, size = x.contiguous(), x.shape[-1]
    normed, width = torch.empty_like(x), triton.next_power_of_2(size)
    rows, at_once = x.numel() // size, max(1, ITEMS // width)
    warps = min(max(width // 512, 4), 16)
    row_kernels.rms_norm[(triton.cdiv(rows, at_once),)](
        x, weight, normed, rows, epsilon, ITEMS=size, D=width, R=at_once, num_warps=warps, **early(x.device)
    )
    return normed


def silu_gate(gate_TF: torch.Tensor, up_TF: torch.Tensor) -> torch.Tensor:
    """See `ops.silu_gate`."""
    programs = (triton.cdiv(gate_TF.numel(), ITEMS),)
    row_kernels.silu_gate[programs](gate_TF, up_TF, gate_TF.numel(), J=ITEMS, **early(gate_TF.device))
    return gate_TF
