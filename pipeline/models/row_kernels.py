"""The Triton kernels of `fused_ops`. Their tensors are pointers here, and each has its shape letters in its name.

Letters: R rows of a program, D items of a row, which are filled up to a power of two from ITEMS, J items of a program.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# fmt: off


@triton.jit(do_not_specialize=["rows"])
def rms_norm(x, weight, out, rows, epsilon, STYLE: tl.constexpr, ITEMS: tl.constexpr, D: tl.constexpr,
        R: tl.constexpr, EARLY: tl.constexpr):
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
    normed_RD = x_RD * scale_R[:, None]
    if weight is not None:
        weight_D = tl.load(weight + item_D, mask=item_D < ITEMS, other=0.0)
        if STYLE == "plain":
            normed_RD = weight_D.to(dtype).to(tl.float32)[None, :] * normed_RD.to(dtype).to(tl.float32)
        elif STYLE == "wide":
            normed_RD = normed_RD * weight_D.to(tl.float32)[None, :]
        else:
            normed_RD = normed_RD * (weight_D.to(tl.float32) + 1.0)[None, :]
    tl.store(out + at_RD, normed_RD.to(dtype), mask=mask_RD)


@triton.jit
def gate(gate, other, items, ACTIVATION: tl.constexpr, J: tl.constexpr, EARLY: tl.constexpr):
    """A program for each J items, into which `gate` is changed: its activation, times the other.

    Compiled for `items` that are a multiple of 16 or not: only of the former several are loaded at a time.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    at_J = tl.program_id(0).to(tl.int64) * J + tl.arange(0, J)
    gate_J = tl.load(gate + at_J, mask=at_J < items, other=0.0)
    other_J = tl.load(other + at_J, mask=at_J < items, other=0.0).to(tl.float32)
    dtype = gate_J.dtype
    gate_J = gate_J.to(tl.float32)
    if ACTIVATION == "silu":
        gate_J = gate_J / (tl.exp(-gate_J) + 1.0)
    elif ACTIVATION == "sigmoid":
        gate_J = 1.0 / (tl.exp(-gate_J) + 1.0)
    elif ACTIVATION == "gelu_tanh":
        inner_J = 0.7978845608028654 * gate_J * (1.0 + 0.044715 * gate_J * gate_J)
        gate_J = 0.5 * gate_J * (2.0 - 2.0 / (tl.exp(2.0 * inner_J) + 1.0))
    else:
        gate_J = tl.maximum(gate_J, 0.0)
        gate_J = gate_J * gate_J
    tl.store(gate + at_J, (gate_J.to(dtype).to(tl.float32) * other_J).to(dtype), mask=at_J < items)


@triton.jit(do_not_specialize=["limit", "slope", "offset"])
def clamped_gate(gate, up, items, limit, slope, offset, J: tl.constexpr, EARLY: tl.constexpr):
    """The same with the gate that `ops.clamped_gate` says, rounded once."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    at_J = tl.program_id(0).to(tl.int64) * J + tl.arange(0, J)
    gate_J = tl.load(gate + at_J, mask=at_J < items, other=0.0)
    up_J = tl.load(up + at_J, mask=at_J < items, other=0.0).to(tl.float32)
    dtype = gate_J.dtype
    gate_J = tl.minimum(gate_J.to(tl.float32), limit)
    gate_J = gate_J / (tl.exp(-slope * gate_J) + 1.0)
    up_J = tl.minimum(tl.maximum(up_J, -limit), limit) + offset
    tl.store(gate + at_J, (gate_J * up_J).to(dtype), mask=at_J < items)


@triton.jit(do_not_specialize=["rows", "heads"])
def turn_last(x, cos, sin, rows, heads, SIZE: tl.constexpr, TURNED: tl.constexpr, P: tl.constexpr, R: tl.constexpr,
        EARLY: tl.constexpr):
    """A program for each R heads of tokens, whose last TURNED of SIZE items are turned, in P pairs of neighbours.

    Rounds where `rotary.rotate` does. `cos` and `sin` have TURNED items for each token.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row_R, pair_P = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R), tl.arange(0, P)
    mask_RP = (row_R < rows)[:, None] & (pair_P < TURNED // 2)[None, :]
    at_RP = row_R[:, None] * SIZE + SIZE - TURNED + 2 * pair_P[None, :]
    angle_RP = (row_R // heads)[:, None] * TURNED + 2 * pair_P[None, :]
    first_RP, second_RP = tl.load(x + at_RP, mask=mask_RP, other=0.0), tl.load(x + at_RP + 1, mask=mask_RP, other=0.0)
    dtype: tl.constexpr = first_RP.dtype
    first_RP, second_RP = first_RP.to(tl.float32), second_RP.to(tl.float32)
    cos_RP = rounded(tl.load(cos + angle_RP, mask=mask_RP, other=0.0), dtype)
    sin_RP = rounded(tl.load(sin + angle_RP, mask=mask_RP, other=0.0), dtype)
    turned_RP = rounded(first_RP * cos_RP, dtype) - rounded(second_RP * sin_RP, dtype)
    tl.store(x + at_RP, turned_RP.to(dtype), mask=mask_RP)
    turned_RP = rounded(second_RP * cos_RP, dtype) + rounded(first_RP * sin_RP, dtype)
    tl.store(x + at_RP + 1, turned_RP.to(dtype), mask=mask_RP)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """To this dtype, and in fp32 again."""
    return x.to(DTYPE).to(tl.float32)
