"""The Triton kernels of `grouped_experts`: products of many experts in one launch, each with the rows that use it.

A program multiplies up to 16 rows of one expert by some rows of its matrices, which it finds by their addresses. The
columns are added up in the same order for each row, whatever the other rows and experts of the launch are.

A line of the table is a tile: where its rows begin in the order of experts, how many there are, none where there is no
tile, and the addresses of the numbers and scales of gate, up and down, and of the biases of the first and the last.
Letters: R rows of a tile, F rows of a matrix, G rows of one whose gate and up take turns, D its columns, K experts that
a token uses.
"""

import triton
import triton.language as tl

# fmt: off

LINE = tl.constexpr(10)
GATE, UP, DOWN, BIASES = tl.constexpr(2), tl.constexpr(4), tl.constexpr(6), tl.constexpr(8)


@triton.jit
def address(at, DTYPE: tl.constexpr):
    """What the table holds there, as a pointer."""
    return tl.multiple_of(tl.load(at).to(tl.pointer_type(DTYPE)), 16)


@triton.jit
def decoded(numbers, scales, row_F, begin, rows, columns, row_step, column_step, scale_step, group, block_rows,
        KIND: tl.constexpr, GROUPS: tl.constexpr, ROUNDS: tl.constexpr, DTYPE: tl.constexpr,
        F: tl.constexpr, D: tl.constexpr):
    """[F, D] of a matrix in DTYPE: (number - 8 of int4) * scale, rounded; or what is stored, cast.

    Scales of one byte are exponents of a power of two. GROUPS: so many groups its D columns are, 0 where that is not
    a whole number.
    """
    column_D = begin + tl.arange(0, D)
    held_FD = (row_F < rows)[:, None] & (column_D < columns)[None, :]
    at_F = row_F.to(tl.int64)[:, None]
    if KIND == "int4" or KIND == "fp4":
        word_W = begin // 8 + tl.arange(0, D // 8)
        word_FW = tl.load(numbers + at_F * row_step + word_W[None, :],
            mask=(row_F < rows)[:, None] & (word_W * 8 < columns)[None, :], other=0)
        number_FD = ((word_FW[:, :, None] >> (tl.arange(0, 8) * 4)[None, None, :]) & 15).reshape((F, D))
        number_FD = of_e2m1(number_FD) if KIND == "fp4" else number_FD - 8
    else:
        number_FD = tl.load(numbers + at_F * row_step + column_D[None, :] * column_step, mask=held_FD, other=0.0)
    if KIND == "dense":
        return number_FD.to(DTYPE)
    scale_at = (at_F // block_rows) * scale_step
    if GROUPS > 0:
        group_P = begin // group + tl.arange(0, GROUPS)
        held_FP = (row_F < rows)[:, None] & (group_P * group < columns)[None, :]
        scale_FP = tl.load(scales + scale_at + group_P[None, :], mask=held_FP, other=0.0)
        scale_FD = tl.broadcast_to(scale_FP[:, :, None], (F, GROUPS, D // GROUPS)).reshape((F, D))
    else:
        scale_FD = tl.load(scales + scale_at + (column_D // group)[None, :], mask=held_FD, other=0.0)
    if scales.dtype.element_ty == tl.uint8:
        exponent_FD = scale_FD.to(tl.int32)
        bits_FD = tl.where(exponent_FD == 0, 0x00400000, tl.where(exponent_FD == 255, 0x7FC00000, exponent_FD << 23))
        scale_FD = bits_FD.to(tl.float32, bitcast=True)
    return (number_FD.to(tl.float32) * scale_FD.to(tl.float32)).to(ROUNDS).to(DTYPE)


@triton.jit
def of_e2m1(number):
    """What a number of 4 bits stands for: sign, exponent and one bit behind the point."""
    size = number & 7
    value = tl.where(size < 2, size * 0.5, ((size << 22) + 0x3F000000).to(tl.float32, bitcast=True))
    return tl.where(number < 8, value, -value)


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


@triton.jit
def clamped(gate_RF, up_RF, limit, slope, offset):
    """As `row_kernels.clamped_gate`: rounded once."""
    dtype = gate_RF.dtype
    gate_RF = tl.minimum(gate_RF.to(tl.float32), limit)
    gate_RF = gate_RF / (tl.exp(-slope * gate_RF) + 1.0)
    up_RF = tl.minimum(tl.maximum(up_RF.to(tl.float32), -limit), limit) + offset
    return (gate_RF * up_RF).to(dtype)


@triton.jit(do_not_specialize=["rows", "scale_step", "limit", "slope", "offset"])
def channels(x, order, table, out, chosen, rows, columns, row_step, column_step, scale_step, group, block_rows,
        limit, slope, offset, KIND: tl.constexpr, NUMBERS: tl.constexpr, SCALES: tl.constexpr, GROUPS: tl.constexpr,
        ROUNDS: tl.constexpr, ACTIVATION: tl.constexpr, R: tl.constexpr, F: tl.constexpr, D: tl.constexpr):
    """Gate and up of the rows `x`, [T, columns], into `out`, [places in the order, rows].

    Without an ACTIVATION the gate is the clamped one, else `limit`, `slope` and `offset` mean nothing.
    """
    line = table + tl.program_id(1) * LINE
    first, count = tl.load(line), tl.load(line + 1)
    if count == 0:
        return
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
        gate_FD = decoded(gate, gate_scales, row_F, begin, rows, columns, row_step, column_step, scale_step, group,
            block_rows, KIND, GROUPS, ROUNDS, dtype, F, D)
        up_FD = decoded(up, up_scales, row_F, begin, rows, columns, row_step, column_step, scale_step, group,
            block_rows, KIND, GROUPS, ROUNDS, dtype, F, D)
        gate_RF = tl.dot(x_RD, gate_FD.T, gate_RF, input_precision="ieee")
        up_RF = tl.dot(x_RD, up_FD.T, up_RF, input_precision="ieee")
    if ACTIVATION is None:
        made_RF = clamped(gate_RF.to(dtype), up_RF.to(dtype), limit, slope, offset)
    else:
        made_RF = activated(gate_RF.to(dtype), up_RF.to(dtype), ACTIVATION)
    into_RF = (first + place_R)[:, None] * rows + row_F[None, :]
    tl.store(out + into_RF, made_RF, mask=used_R[:, None] & (row_F < rows)[None, :])


@triton.jit
def product(x, x_R, used_R, numbers, scales, row_F, rows, columns, row_step, column_step, scale_step, group, block_rows,
        KIND: tl.constexpr, GROUPS: tl.constexpr, ROUNDS: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
        D: tl.constexpr):
    """Some rows of `x`, [any, columns], times some rows of a matrix, in fp32: [R, F]."""
    sum_RF = tl.zeros((R, F), tl.float32)
    dtype = x.dtype.element_ty
    for begin in range(0, columns, D):
        column_D = begin + tl.arange(0, D)
        held_RD = used_R[:, None] & (column_D < columns)[None, :]
        x_RD = tl.load(x + x_R[:, None] * columns + column_D[None, :], mask=held_RD, other=0.0)
        number_FD = decoded(numbers, scales, row_F, begin, rows, columns, row_step, column_step, scale_step, group,
            block_rows, KIND, GROUPS, ROUNDS, dtype, F, D)
        sum_RF = tl.dot(x_RD, number_FD.T, sum_RF, input_precision="ieee")
    return sum_RF


@triton.jit(do_not_specialize=["rows", "scale_step", "limit", "slope", "offset"])
def channels_in_turns(x, order, table, out, chosen, rows, columns, row_step, column_step, scale_step, group, block_rows,
        limit, slope, offset, KIND: tl.constexpr, NUMBERS: tl.constexpr, SCALES: tl.constexpr, GROUPS: tl.constexpr,
        ROUNDS: tl.constexpr, BIAS: tl.constexpr, R: tl.constexpr, F: tl.constexpr, D: tl.constexpr):
    """The same of one matrix in which gate and up take turns, with the clamped gate."""
    line = table + tl.program_id(1) * LINE
    first, count = tl.load(line), tl.load(line + 1)
    if count == 0:
        return
    place_R = tl.arange(0, R)
    G: tl.constexpr = 2 * F
    row_G, used_R = tl.program_id(0) * G + tl.arange(0, G), place_R < count
    x_R = tl.load(order + first + place_R, mask=used_R, other=0) // chosen
    numbers, scales = address(line + GATE, NUMBERS), address(line + GATE + 1, SCALES)
    sum_RG = product(x, x_R, used_R, numbers, scales, row_G, 2 * rows, columns, row_step, column_step, scale_step,
        group, block_rows, KIND, GROUPS, ROUNDS, R, G, D)
    if BIAS is not None:
        bias_G = tl.load(address(line + BIASES, BIAS) + row_G, mask=row_G < 2 * rows, other=0.0)
        sum_RG += bias_G.to(tl.float32)[None, :]
    dtype = x.dtype.element_ty
    gate_RF, up_RF = tl.split(sum_RG.to(dtype).reshape((R, F, 2)))
    made_RF = clamped(gate_RF, up_RF, limit, slope, offset)
    row_F = tl.program_id(0) * F + tl.arange(0, F)
    into_RF = (first + place_R)[:, None] * rows + row_F[None, :]
    tl.store(out + into_RF, made_RF, mask=used_R[:, None] & (row_F < rows)[None, :])


@triton.jit(do_not_specialize=["rows", "scale_step"])
def down(x, order, table, out, rows, columns, row_step, column_step, scale_step, group, block_rows,
        KIND: tl.constexpr, NUMBERS: tl.constexpr, SCALES: tl.constexpr, GROUPS: tl.constexpr, ROUNDS: tl.constexpr,
        BIAS: tl.constexpr, R: tl.constexpr, F: tl.constexpr, D: tl.constexpr):
    """The last product of `x`, [places in the order, columns], into `out`, [places in the pass, rows]."""
    line = table + tl.program_id(1) * LINE
    first, count = tl.load(line), tl.load(line + 1)
    if count == 0:
        return
    place_R = tl.arange(0, R)
    row_F, used_R = tl.program_id(0) * F + tl.arange(0, F), place_R < count
    numbers, scales = address(line + DOWN, NUMBERS), address(line + DOWN + 1, SCALES)
    sum_RF = product(x, first + place_R, used_R, numbers, scales, row_F, rows, columns, row_step, column_step,
        scale_step, group, block_rows, KIND, GROUPS, ROUNDS, R, F, D)
    if BIAS is not None:
        bias_F = tl.load(address(line + BIASES + 1, BIAS) + row_F, mask=row_F < rows, other=0.0)
        sum_RF += bias_F.to(tl.float32)[None, :]
    into_R = tl.load(order + first + place_R, mask=used_R, other=0)
    into_RF = into_R[:, None] * rows + row_F[None, :]
    tl.store(out + into_RF, sum_RF.to(x.dtype.element_ty), mask=used_R[:, None] & (row_F < rows)[None, :])


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
