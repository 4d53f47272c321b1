"""The Triton kernels of `fused_ops`. Their tensors are pointers here, and each has its shape letters in its name.

Letters: R rows of a program, D items of a row, which are filled up to a power of two from ITEMS, J items of a program.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# fmt: off


@triton.jit(do_not_specialize=["rows"])
def rms_norm(x, weight, out, rows, epsilon, ITEMS: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
        EARLY: tl.constexpr):
    """A program for each R rows. Rounds where `ops.rms_norm` does."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row_R, item_D = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R), tl.arange(0, D)
    mask_RD = (row_R < rows)[:, None] & (item_D < ITEMS)[None, :]
    at_RD = row_R[:, None] * ITEMS + item_D[None, :]
    x_RD = tl.load(x + at_RD, mask=mask_RD, other=0.0)
    dtype = x_RD.dtype
    x_RD = x_RD.to(tl.float32)
    scale_R = tl.rsqrt(tl.sum(x_RD * x_RD, 1) * (1.0 / ITEMS) + epsilon)
    normed_RD = (x_RD * scale_R[:, None]).to(dtype).to(tl.float32)
    weight_D = tl.load(weight + item_D, mask=item_D < ITEMS, other=0.0).to(dtype).to(tl.float32)
    tl.store(out + at_RD, (weight_D[None, :] * normed_RD).to(dtype), mask=mask_RD)


@triton.jit
def silu_gate(gate, up, items, J: tl.constexpr, EARLY: tl.constexpr):
    """A program for each J items, into which `gate` is changed.

    Compiled for `items` that are a multiple of 16 or not: only of the former several are loaded at a time.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    at_J = tl.program_id(0).to(tl.int64) * J + tl.arange(0, J)
    gate_J = tl.load(gate + at_J, mask=at_J < items, other=0.0)
    up_J = tl.load(up + at_J, mask=at_J < items, other=0.0).to(tl.float32)
    dtype = gate_J.dtype
    gate_J = gate_J.to(tl.float32)
    gate_J = (gate_J / (tl.exp(-gate_J) + 1.0)).to(dtype).to(tl.float32)
    tl.store(gate + at_J, (gate_J * up_J).to(dtype), mask=at_J < items)
