"""The Triton kernels of `grouped_experts`: products of many experts in one launch, each with the rows that use it.

A program multiplies up to 16 rows of one expert by some rows of its matrices, which it finds by their addresses. The
columns are added up in the same order for each row, whatever the other rows and experts of the launch are.

A line of the table is a tile: where its rows begin in the order of experts, how many there are, and the addresses of
the numbers and scales of gate, up and down.
Letters: R rows of a tile, F rows of a matrix, D its columns, K experts that a token uses.
"""

import triton
import triton.language as tl

# fmt: off

LINE = tl.constexpr(8)
GATE, UP, DOWN = tl.constexpr(2), tl.constexpr(4), tl.constexpr(6)


@triton.jit
def address(at, DTYPE: tl.constexpr):
    """What the table holds there, as a pointer."""
    return tl.multiple_of(tl.load(at).to(tl.pointer_type(DTYPE)), 16)


@triton.jit
def decoded(numbers, scales, row_F, begin, rows, columns, scale_step, group, block_rows,
        KIND: tl.constexpr, WHOLE: tl.constexpr, ROUNDS: tl.constexpr, DTYPE: tl.constexpr,
        F: tl.constexpr, D: tl.constexpr):
    """[F, D] of a matrix in DTYPE: (number - 8 of int4) * scale, rounded; or what is stored, cast.

    WHOLE: its D columns share their scales.
    """
    column_D = begin + tl.arange(0, D)
    held_FD = (row_F < rows)[:, None] & (column_D < columns)[None, :]
    at_F = row_F.to(tl.int64)[:, None]
    if KIND == "int4":
        word_W = begin // 8 + tl.arange(0, D // 8)
        word_FW = tl.load(numbers + at_F * tl.cdiv(columns, 8) + word_W[None, :],
            mask=(row_F < rows)[:, None] & (word_W * 8 < columns)[None, :], other=0)
        number_FD = ((word_FW[:, :, None] >> (tl.arange(0, 8) * 4)[None, None, :]) & 15).reshape((F, D)) - 8
    else:
        number_FD = tl.load(numbers + at_F * columns + column_D[None, :], mask=held_FD, other=0.0)
    if KIND == "dense":
        return number_FD.to(DTYPE)
    scale_at = (at_F // block_rows) * scale_step
    if WHOLE:
        scale_FD = tl.load(scales + scale_at + begin // group, mask=(row_F < rows)[:, None], other=0.0)
    else:
        scale_FD = tl.load(scales + scale_at + (column_D // group)[None, :], mask=held_FD, other=0.0)
    return (number_FD.to(tl.float32) * scale_FD.to(tl.float32)).to(ROUNDS).to(DTYPE)


@triton.jit
def activated(gate_RF, up_RF, ACTIVATION: tl.constexpr):
    """The activation of the gate, rounded, times up: as `row_kernels.gate`."""
    dtype = gate_RF.dtype
    gate_RF = gate_RF.to(tl.float32)
    if ACTIVATION == "silu":
        gate_RF = gate_RF / (tl.exp(-gate_RF) + 1.0)
    elif ACTIVATION == "gelu_tanh":
        inner_RF = 0.7978845608028654 * gate_RF * (1.0 + 0.044715 * gate_RF * gate_RF)
        gate_RF = 0.5 * gate_RF * (2.0 - 2.0 / (tl.exp(2.0 * inner_RF) + 1.0))
    else:
        gate_RF = tl.maximum(gate_RF, 0.0)
        gate_RF = gate_RF * gate_RF
    return (gate_RF.to(dtype).to(tl.float32) * up_RF.to(tl.float32)).to(dtype)


@triton.jit(do_not_specialize=["rows", "scale_step"])
def channels(x, order, table, out, chosen, rows, columns, scale_step, group, block_rows,
        KIND: tl.constexpr, NUMBERS: tl.constexpr, SCALES: tl.constexpr, WHOLE: tl.constexpr, ROUNDS: tl.constexpr,
        ACTIVATION: tl.constexpr, R: tl.constexpr, F: tl.constexpr, D: tl.constexpr):
    """Gate and up of the rows `x`, [T, columns], into `out`, [places in the order, rows]."""
    line = table + tl.program_id(1) * LINE
    first, count = tl.load(line), tl.load(line + 1)
    place_R = tl.arange(0, R)
    row_F, used_R = tl.program_id(0) * F + tl.arange(0, F), place_R < count
    x_R = tl.load(order + first + place_R, mask=used_R, other=0) // chosen
    gate, gate_scales = address(line + GATE, NUMBERS), address(line + GATE + 1, SCALES)
    up, up_scales = address(line + UP, NUMBERS), address(line + UP + 1, SCALES)
    gate_RF, up_RF = tl.zeros((R, F), tl.float32), tl.zeros((R, F), tl.float32)
    dtype = x.dtype.element_ty
    for begin in range(0, columns, D):
        column_D = begin + tl.arange(0, D)
        held_RD = used_R[:, None] & (column_D < columns)[None, :]
        x_RD = tl.load(x + x_R[:, None] * columns + column_D[None, :], mask=held_RD, other=0.0)
        gate_FD = decoded(gate, gate_scales, row_F, begin, rows, columns, scale_step, group, block_rows,
            KIND, WHOLE, ROUNDS, dtype, F, D)
        up_FD = decoded(up, up_scales, row_F, begin, rows, columns, scale_step, group, block_rows,
            KIND, WHOLE, ROUNDS, dtype, F, D)
        gate_RF = tl.dot(x_RD, gate_FD.T, gate_RF, input_precision="ieee")
        up_RF = tl.dot(x_RD, up_FD.T, up_RF, input_precision="ieee")
    made_RF = activated(gate_RF.to(dtype), up_RF.to(dtype), ACTIVATION)
    into_RF = (first + place_R)[:, None] * rows + row_F[None, :]
    tl.store(out + into_RF, made_RF, mask=used_R[:, None] & (row_F < rows)[None, :])


@triton.jit(do_not_specialize=["rows", "scale_step"])
def down(x, order, table, out, rows, columns, scale_step, group, block_rows,
        KIND: tl.constexpr, NUMBERS: tl.constexpr, SCALES: tl.constexpr, WHOLE: tl.constexpr, ROUNDS: tl.constexpr,
        R: tl.constexpr, F: tl.constexpr, D: tl.constexpr):
    """The last product of `x`, [places in the order, columns], into `out`, [places in the pass, rows]."""
    line = table + tl.program_id(1) * LINE
    first, count = tl.load(line), tl.load(line + 1)
    place_R = tl.arange(0, R)
    row_F, used_R = tl.program_id(0) * F + tl.arange(0, F), place_R < count
    numbers, scales = address(line + DOWN, NUMBERS), address(line + DOWN + 1, SCALES)
    sum_RF = tl.zeros((R, F), tl.float32)
    dtype = x.dtype.element_ty
    for begin in range(0, columns, D):
        column_D = begin + tl.arange(0, D)
        held_RD = used_R[:, None] & (column_D < columns)[None, :]
        x_RD = tl.load(x + (first + place_R)[:, None] * columns + column_D[None, :], mask=held_RD, other=0.0)
        down_FD = decoded(numbers, scales, row_F, begin, rows, columns, scale_step, group, block_rows,
            KIND, WHOLE, ROUNDS, dtype, F, D)
        sum_RF = tl.dot(x_RD, down_FD.T, sum_RF, input_precision="ieee")
    into_R = tl.load(order + first + place_R, mask=used_R, other=0)
    into_RF = into_R[:, None] * rows + row_F[None, :]
    tl.store(out + into_RF, sum_RF.to(dtype), mask=used_R[:, None] & (row_F < rows)[None, :])


@triton.jit
def weighed_sum(outputs, shares, out, chosen, columns, D: tl.constexpr):
    """Of a row what its experts gave, [K, columns], times their shares, from rank to rank; rounded at the end."""
    row, column_D = tl.program_id(0).to(tl.int64), tl.program_id(1) * D + tl.arange(0, D)
    held_D, sum_D = column_D < columns, tl.zeros((D,), tl.float32)
    for rank in range(chosen):
        at = row * chosen + rank
        gave_D = tl.load(outputs + at * columns + column_D, mask=held_D, other=0.0).to(tl.float32)
        sum_D += gave_D * tl.load(shares + at)
    tl.store(out + row * columns + column_D, sum_D.to(out.dtype.element_ty), mask=held_D)
