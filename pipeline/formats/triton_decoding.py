"""The kernels of `triton_products`: stored matrices are decoded in registers, where the tensor cores read them.

They are written in Gluon, the language of Triton in which a layout says which thread has which item. So a thread loads
words that lie together, and what it decodes from them is its share of an operand: nothing goes through shared memory.
A sum may take its columns in any order, as long as numbers and x take the same one.

Letters: W warps, each with columns of its own; F rows of the matrix; C chunks of columns, of 4 words with E columns
each; N rows of x. Four neighbouring threads have the chunks of one row of a tile. `triton_products` makes `parts`,
`steps` and `how`.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# fmt: off


@gluon.constexpr_function
def decode_pairs(kind, dtype, words):
    """PTX that makes 8 values of a word, or 8 pairs of two words: each number is decoded with one 16 bits further.

    A whole number is put into the mantissa of 2^7 or 2^10; then that and the zero are subtracted, which is exact. The
    bits of an fp4 are put where the dtype has them, and a power of two makes up for the bias of the exponent. So all
    rounding is that of the product with the scale.
    """
    is_bf16, is_int = dtype == gl.bfloat16, kind == "int4"
    fma, magic = ("fma.rn.bf16x2", "0x43004300") if is_bf16 else ("fma.rn.f16x2", "0x64006400")
    one, bias = ("0x3F803F80", "0x7E807E80") if is_bf16 else ("0x3C003C00", "0x74007400")
    lines = [".reg .b32 t, u, s, m, low, high, factor, none;", "mov.b32 none, 0x80008000;"]
    lines += [f"mov.b32 factor, {one if is_int else bias};"]
    if words == 1:
        lines += ["mov.b32 low, $8;", "mov.b32 s, {$9, $9};", "mov.b32 m, {$10, $10};"]
    else:
        lines += ["prmt.b32 low, $8, $9, 0x5410;", "prmt.b32 high, $8, $9, 0x7632;"]
    for place in range(4 * words):
        source, shift = "low" if place < 4 else "high", 4 * (place % 4)
        scale, zero = ("s", "m") if words == 1 else (f"${10 + place}", f"${18 + place}")
        if is_int:
            lines += [f"shr.b32 t, {source}, {shift};", f"lop3.b32 t, t, 0x000F000F, {magic}, 0xEA;"]
            lines += [f"{fma} t, t, factor, {zero};"]
        else:
            left, magnitude = (6 - shift, "0x01C001C0") if is_bf16 else (9 - shift, "0x0E000E00")
            lines += [f"{'shl' if left >= 0 else 'shr'}.b32 t, {source}, {abs(left)};"]
            lines += [f"shl.b32 u, {source}, {12 - shift};", "and.b32 u, u, 0x80008000;"]
            lines += [f"lop3.b32 t, t, {magnitude}, u, 0xEA;", f"{fma} t, t, factor, none;"]
        lines += [f"{fma} t, t, {scale}, none;"]
        lines += [f"mov.b32 {{${place}, ${place + 4}}}, t;" if words == 1 else f"mov.b32 ${place}, t;"]
    return "{" + "\n".join(lines) + "}"


@gluon.constexpr_function
def element_layout(W, E):
    """Of [W, F, C, 4, E]."""
    return gl.BlockedLayout([1, 1, 1, 4, E], [1, 8, 4, 1, 1], [W, 1, 1, 1, 1], [4, 3, 2, 1, 0])


@gluon.constexpr_function
def axis_layout(layout, axis):
    """Of one axis of tensors of this layout."""
    for other in reversed(range(layout.rank)):
        if other != axis:
            layout = gl.SliceLayout(other, layout)
    return layout


@gluon.jit
def along(axis: gl.constexpr, count: gl.constexpr, layout: gl.constexpr):
    """0, 1, ... along an axis of tensors of this layout; the others have 1 item."""
    v = gl.arange(0, count, axis_layout(layout, axis))
    RANK: gl.constexpr = layout.rank
    for other in gl.static_range(RANK):
        if other != axis:
            v = gl.expand_dims(v, other)
    return v


@gluon.jit
def joined(v0, v1, v2, v3, v4, v5, v6, v7):
    """[..., 2, 2, 2] of 8 tensors, which is [..., 8] when it is reshaped."""
    return gl.join(gl.join(gl.join(v0, v4), gl.join(v2, v6)), gl.join(gl.join(v1, v5), gl.join(v3, v7)))


@gluon.jit
def eight(word, scale, less, kind: gl.constexpr):
    """[..., 2, 2, 2] of a word, in the dtype of the scales, which are, like `less`, of words or chunks."""
    dtype: gl.constexpr = scale.dtype
    if len(scale.shape) == 3:
        scale = scale[:, :, :, None]
        less = less[:, :, :, None]
    ASM: gl.constexpr = decode_pairs(kind, dtype, 1)
    v0, v1, v2, v3, v4, v5, v6, v7 = gl.inline_asm_elementwise(ASM, "=h,=h,=h,=h,=h,=h,=h,=h,r,h,h",
        [word, scale, less], dtype=(gl.int16,) * 8, is_pure=True, pack=1)
    return joined(v0, v1, v2, v3, v4, v5, v6, v7).to(dtype, bitcast=True)


@gluon.jit
def fetched(parts, steps, first, row, chunk, how: gl.constexpr, W: gl.constexpr):
    """Words [W, F, C, 4], and scales and zeros of chunks, words or single columns.

    `row` is [1, F, 1], counted from row `first`, and `chunk` [W, 1, C]. What is outside the matrix is 0.
    """
    numbers, scales, zeros, order, _, outer, code, offset = parts
    rows, columns, row_step, word_step, scale_row_step, scale_step, zero_row_step, zero_step = steps
    E: gl.constexpr = how.per_word
    L5: gl.constexpr = element_layout(W, E)
    numbers += first.to(gl.int64) * row_step
    rows -= first
    word = chunk[:, :, :, None] * 4 + along(3, 4, gl.SliceLayout(4, L5))
    held = chunk[:, :, :, None] * (4 * E) < columns if how.whole else word * E < columns
    held &= (row < rows)[:, :, :, None]
    number = gl.load(numbers + row[:, :, :, None] * row_step + word * word_step, mask=held, other=0)
    if how.ordered or how.group % E != 0:
        at_row = row[:, :, :, None, None]
        column = word[:, :, :, :, None] * E + along(4, E, L5)
    elif how.group % (4 * E) != 0:
        at_row = row[:, :, :, None]
        column = word * E
    else:
        at_row = row
        column = chunk * (4 * E)
    inside = (at_row < rows) & (column < columns)
    group = gl.load(order + column, mask=column < columns, other=0) if how.ordered else column // how.group
    at_row += first
    scale_at = at_row // how.block_rows * scale_row_step + group * scale_step
    scale = gl.load(scales + scale_at, mask=inside, other=0.0)
    if how.scaled == "coded" or how.scaled == "nested":
        scale = gl.load(code + scale.to(gl.int32))
    if how.scaled == "nested":
        scale = scale * gl.load(outer + scale_at // 256, mask=inside, other=0.0) + offset
    if zeros is None:
        zero = gl.full(scale.shape, how.zero, gl.int32, scale.type.layout)
    else:
        zero_at = at_row // how.per_zero * zero_row_step + group * zero_step
        zero = gl.load(zeros + zero_at, mask=inside, other=0).to(gl.int32)
        if how.per_zero > 1:
            shift = at_row % how.per_zero * (32 // how.per_zero)
            zero = zero + how.added >> shift & (1 << 32 // how.per_zero) - 1
    return number, scale, zero


@gluon.jit
def decoded(number, scale, zero, levels, how: gl.constexpr, W: gl.constexpr, F: gl.constexpr, C: gl.constexpr):
    """[W, F, C, 4, E] in the dtype that it is rounded to, of what was fetched."""
    KIND: gl.constexpr = how.kind
    SHAPE: gl.constexpr = [W, F, C, 4, how.per_word]
    L5: gl.constexpr = element_layout(W, how.per_word)
    if how.scaled == "exponent":
        exponent = scale.to(gl.int32)
        bits = gl.where(exponent == 0, 0x00400000, gl.where(exponent == 255, 0x7FC00000, exponent << 23))
        scale = bits.to(gl.float32, bitcast=True)
    if how.in_pairs and len(scale.shape) < 5:
        less = (zero | (0xC300 if gl.bfloat16 == how.rounds_to else 0xE400)).to(gl.int16)
        return gl.convert_layout(eight(number, scale.to(how.rounds_to), less, KIND).reshape(SHAPE), L5)
    if KIND == "fp8":
        v0, v1, v2, v3 = gl.inline_asm_elementwise(
            "{ .reg .b16 l, h; .reg .b32 t; mov.b32 {l, h}, $4; cvt.rn.f16x2.e4m3x2 t, l; mov.b32 {$0, $1}, t;"
            " cvt.rn.f16x2.e4m3x2 t, h; mov.b32 {$2, $3}, t; }", "=h,=h,=h,=h,r", [number],
            dtype=(gl.float16, gl.float16, gl.float16, gl.float16), is_pure=True, pack=1)
        number = gl.join(gl.join(v0, v2), gl.join(v1, v3))
    elif KIND == "int8":
        number = gl.join(gl.join(number << 24, number << 8), gl.join(number << 16, number)) >> 24
    elif KIND == "uint8":
        number = gl.join(gl.join(number, number >> 16), gl.join(number >> 8, number >> 24)) & 255
    elif KIND == "fp4":
        number = eight(number, gl.full(scale.shape, 1, gl.float16, scale.type.layout), zero.to(gl.int16), KIND)
    else:
        X: gl.constexpr = 4 if KIND == "nf4" else 0
        number = joined(number >> X, number >> (4 ^ X), number >> (8 ^ X), number >> (12 ^ X), number >> (16 ^ X),
            number >> (20 ^ X), number >> (24 ^ X), number >> (28 ^ X)) & 15
    number = gl.convert_layout(number.reshape(SHAPE), L5)
    value = gl.load(levels + number) if KIND == "nf4" else number.to(gl.float32) - spread(zero)
    return (value * spread(scale)).to(how.rounds_to)


@gluon.jit
def spread(v):
    """What chunks, octets or columns have, as [W, F, C, 1 or 4, 1 or E] in fp32."""
    v = v.to(gl.float32)
    if len(v.shape) == 3:
        v = v[:, :, :, None]
    if len(v.shape) == 4:
        v = v[:, :, :, :, None]
    return v


@gluon.jit
def fetched_x(x, count, columns, first_column, W: gl.constexpr, N: gl.constexpr, K: gl.constexpr, layout: gl.constexpr):
    """[W, N, K]: K columns of the N rows of x that are this program's, for each warp."""
    row = gl.program_id(0) * N + along(1, N, layout)
    column = first_column + along(0, W, layout) * K + along(2, K, layout)
    return gl.load(x + row * columns + column, mask=(row < count) & (column < columns), other=0.0)


@gluon.jit
def store_sums(sums, bias, out, first, count, adds, rows, edges, C: gl.constexpr, W: gl.constexpr):
    """Add what the warps have, always in the same order: a thread has what all have. Row c + C * i of the sums is row
    8 * c + i of the matrix, or c where C is all of them. `edges` are the ends of the first and the second of at most
    three matrices that are one here; each has a result of its own, which lie one behind the other. If it `adds`, `out`
    keeps what it has: the rounded product is added to it.
    """
    layout: gl.constexpr = gl.BlockedLayout([W, 1, 1], [1, 32, 1], [1, 1, W], [1, 2, 0])
    total = gl.sum(gl.convert_layout(sums, layout), 0)
    at = along(0, sums.shape[1], gl.SliceLayout(0, layout))
    row = first + (at if sums.shape[1] == C else at % C * 8 + at // C)
    begin = gl.where(first >= edges[1], edges[1], gl.where(first >= edges[0], edges[0], 0))
    end = gl.where(first >= edges[1], rows, gl.where(first >= edges[0], edges[1], edges[0]))
    x_row = gl.program_id(0) * sums.shape[2] + along(1, sums.shape[2], gl.SliceLayout(0, layout))
    if bias is not None:
        total += gl.load(bias + row, mask=row < rows, other=0.0).to(gl.float32)
    into = out + begin * count + x_row * (end - begin) + (row - begin)
    inside = (x_row < count) & (row < end)
    total = total.to(out.dtype.element_ty)
    if adds:
        total = (gl.load(into, mask=inside, other=0.0).to(gl.float32) + total.to(gl.float32)).to(out.dtype.element_ty)
    gl.store(into, total, mask=inside)


@gluon.jit(do_not_specialize=["count", "adds"])
def product(x, parts, steps, edges, bias, out, count, adds, how: gl.constexpr, FAR: gl.constexpr, W: gl.constexpr,
        F: gl.constexpr, UNITS: gl.constexpr, N: gl.constexpr, EARLY: gl.constexpr):
    """`out` is `x` times the transposed matrix, plus `bias`: a program for N rows of x and F of the matrix.

    `edges` and `adds`: see `store_sums`. FAR: words are fetched two steps ahead, not one.
    """
    C: gl.constexpr = 4 * UNITS
    WIDTH: gl.constexpr = 4 * how.per_word
    L3: gl.constexpr = gl.SliceLayout(3, gl.SliceLayout(4, element_layout(W, how.per_word)))
    LX: gl.constexpr = gl.BlockedLayout([1, 1, WIDTH], [1, 8, 4], [W, 1, 1], [2, 1, 0])
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [W, 1, 1], [1, 16, 8])
    rows = steps[0]
    columns = steps[1]
    first = gl.program_id(1) * F
    row = along(1, F, L3)
    chunk = along(0, W, L3) * C + along(2, C, L3)
    sums = gl.zeros([W, F, N], gl.float32, MMA)
    if EARLY:
        gdc_launch_dependents()
        if how.scaled == "coded" or how.scaled == "nested":  # the codes may be computed just before
            gdc_wait()
    if not how.ordered:
        number, scale, zero = fetched(parts, steps, first, row, chunk, how, W)
    if FAR:
        number_1, scale_1, zero_1 = fetched(parts, steps, first, row, W * C + chunk, how, W)
    if EARLY:
        gdc_wait()
    for step in range(0, gl.cdiv(columns, WIDTH), W * C):
        x_tile = fetched_x(x, count, columns, step * WIDTH, W, N, C * WIDTH, LX)
        if how.ordered:  # what comes next does not fit into registers
            now, scale_now, zero_now = fetched(parts, steps, first, row, step + chunk, how, W)
        elif FAR:
            now, scale_now, zero_now = number, scale, zero
            number, scale, zero = number_1, scale_1, zero_1
            number_1, scale_1, zero_1 = fetched(parts, steps, first, row, step + 2 * W * C + chunk, how, W)
        else:
            now, scale_now, zero_now = number, scale, zero
            number, scale, zero = fetched(parts, steps, first, row, step + W * C + chunk, how, W)
        tile = decoded(now, scale_now, zero_now, parts[4], how, W, F, C).to(x.dtype.element_ty)
        tile = tile.reshape([W, F, UNITS, 4, WIDTH // 8, 2, 4]).permute([0, 1, 2, 4, 3, 6, 5])
        x_tile = x_tile.reshape([W, N, UNITS, 4, WIDTH // 8, 2, 4]).permute([0, 2, 4, 3, 6, 5, 1])
        tile = tile.reshape([W, F, C * WIDTH])
        x_tile = x_tile.reshape([W, C * WIDTH, N])
        sums = mma_v2(
            gl.convert_layout(tile, gl.DotOperandLayout(0, MMA, 8), assert_trivial=True),
            gl.convert_layout(x_tile, gl.DotOperandLayout(1, MMA, 8), assert_trivial=True), sums)
    store_sums(sums, bias, out, first, count, adds, rows, edges, F, W)


@gluon.jit(do_not_specialize=["first_row"])
def decode(parts, steps, out, first_row, how: gl.constexpr, W: gl.constexpr, F: gl.constexpr, UNITS: gl.constexpr):
    """Rows of the matrix from `first_row` on: a program for each F of them and W * UNITS * 4 chunks."""
    C: gl.constexpr = 4 * UNITS
    E: gl.constexpr = how.per_word
    L3: gl.constexpr = gl.SliceLayout(3, gl.SliceLayout(4, element_layout(W, E)))
    LO: gl.constexpr = gl.BlockedLayout([1, 1, 1, 1, E], [1, 2, 4, 4, 1], [W, 1, 1, 1, 1], [4, 3, 2, 1, 0])
    rows = steps[0]
    columns = steps[1]
    first = gl.program_id(0) * F
    chunk = gl.program_id(1) * (W * C) + along(0, W, L3) * C + along(2, C, L3)
    number, scale, zero = fetched(parts, steps, first_row + first, along(1, F, L3), chunk, how, W)
    tile = decoded(number, scale, zero, parts[4], how, W, F, C).to(out.dtype.element_ty)
    row = first + along(1, F, LO)
    chunk = gl.program_id(1) * (W * C) + along(0, W, LO) * C + along(2, C, LO)
    column = chunk * (4 * E) + along(3, 4, LO) * E + along(4, E, LO)
    gl.store(out + row.to(gl.int64) * columns + column, gl.convert_layout(tile, LO),
        mask=(first_row + row < rows) & (column < columns))
