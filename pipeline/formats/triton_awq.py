"""The kernels of `triton_products` for AWQ: siblings of `triton_decoding`, which says how they work.

A matrix is transposed: a word has 8 rows of one column, and 8 threads have words that lie together.
Letters: W warps, each with columns of its own; S octets of columns; C words; N rows of x.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from pipeline.formats.triton_decoding import along, decode_pairs, fetched_x, joined, store_sums

# fmt: off


@gluon.constexpr_function
def word_layout(W):
    """Of [W, S, 8, C] words."""
    return gl.BlockedLayout([1, 1, 8, 1], [1, 4, 1, 8], [W, 1, 1, 1], [2, 1, 3, 0])


@gluon.jit
def split_in_8(v, W: gl.constexpr, S: gl.constexpr, C: gl.constexpr, layout: gl.constexpr):
    """Eight [W, S, 1, C] of [W, S, C, 8]."""
    v0246, v1357 = gl.split(v.reshape([W, S, C, 2, 2, 2]))
    v04, v26 = gl.split(v0246)
    v15, v37 = gl.split(v1357)
    v0, v4 = gl.split(v04)
    v2, v6 = gl.split(v26)
    v1, v5 = gl.split(v15)
    v3, v7 = gl.split(v37)
    return of_word(v0, layout), of_word(v1, layout), of_word(v2, layout), of_word(v3, layout), of_word(v4, layout), \
        of_word(v5, layout), of_word(v6, layout), of_word(v7, layout)


@gluon.jit
def of_word(v, layout: gl.constexpr):
    """[W, S, 1, C] in this layout."""
    return gl.convert_layout(v, gl.SliceLayout(2, layout))[:, :, None, :]


@gluon.jit
def less(zero, shift: gl.constexpr, magic: gl.constexpr):
    """The bits of what is to be taken from a number that lies in a mantissa."""
    return ((zero >> shift & 15) | magic).to(gl.int16)[:, :, None, :]


@gluon.jit
def decoded(parts, word, octet, words, columns, group_columns: gl.constexpr, W: gl.constexpr, S: gl.constexpr,
        C: gl.constexpr):
    """[W, S, 8, C, 2, 2, 2] in the dtype of the scales: 8 columns of the matrix, and the 8 rows that share a word.

    `word` is [1, 1, C], `octet` [W, S, 1].
    """
    numbers, scales, zeros = parts
    VALUE: gl.constexpr = scales.dtype.element_ty
    L4: gl.constexpr = word_layout(W)
    LS: gl.constexpr = gl.BlockedLayout([1, 1, 1, 8], [1, 4, 8, 1], [W, 1, 1, 1], [3, 1, 2, 0])
    LR: gl.constexpr = gl.SliceLayout(3, LS)
    column = octet[:, :, None, :] * 8 + along(2, 8, L4)
    at_word = word[:, :, None, :]
    number = gl.load(numbers + column * words + at_word, mask=(column < columns) & (at_word < words), other=0)
    inside = (octet * 8 < columns) & (word < words)
    at = octet * 8 // group_columns * words + word
    zero = gl.load(zeros + at, mask=inside, other=0)
    scale_at = gl.convert_layout(at, LR)[:, :, :, None] * 8 + along(3, 8, LS)
    scale = gl.load(scales + scale_at, mask=gl.convert_layout(inside, LR)[:, :, :, None], other=0.0)
    s0, s1, s2, s3, s4, s5, s6, s7 = split_in_8(scale, W, S, C, L4)
    X: gl.constexpr = 0xC300 if VALUE == gl.bfloat16 else 0xE400  # noqa: SIM300
    ASM: gl.constexpr = decode_pairs("int4", VALUE, 2)
    v0, v2, v4, v6, v1, v3, v5, v7 = gl.inline_asm_elementwise(
        ASM, "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
        [number, s0, s2, s4, s6, s1, s3, s5, s7, less(zero, 0, X), less(zero, 4, X), less(zero, 8, X),
            less(zero, 12, X), less(zero, 16, X), less(zero, 20, X), less(zero, 24, X), less(zero, 28, X)],
        dtype=(gl.int16,) * 8, is_pure=True, pack=2)
    return joined(v0, v1, v2, v3, v4, v5, v6, v7).to(VALUE, bitcast=True)


@gluon.jit(do_not_specialize=["count", "adds"])
def product(x, parts, bias, out, count, adds, rows, columns, group_columns: gl.constexpr, W: gl.constexpr,
        F: gl.constexpr, UNITS: gl.constexpr, N: gl.constexpr, EARLY: gl.constexpr):
    """As that of `triton_decoding`."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    S: gl.constexpr = 8 * UNITS
    C: gl.constexpr = F // 8
    L3: gl.constexpr = gl.SliceLayout(2, word_layout(W))
    LX: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 8, 4], [W, 1, 1], [2, 1, 0])
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [W, 1, 1], [1, 16, 8])
    first = gl.program_id(1)
    word = first * C + along(2, C, L3)
    octet = along(0, W, L3) * S + along(1, S, L3)
    sums = gl.zeros([W, F, N], gl.float32, MMA)
    for step in range(0, gl.cdiv(columns, 8), W * S):
        x_tile = fetched_x(x, count, columns, step * 8, W, N, S * 8, LX).permute([0, 2, 1])
        tile = decoded(parts, word, step + octet, rows // 8, columns, group_columns, W, S, C).to(x.dtype.element_ty)
        tile = tile.permute([0, 4, 5, 6, 3, 1, 2]).reshape([W, F, S * 8])
        sums = mma_v2(
            gl.convert_layout(tile, gl.DotOperandLayout(0, MMA, 8), assert_trivial=True),
            gl.convert_layout(x_tile, gl.DotOperandLayout(1, MMA, 8), assert_trivial=True), sums)
    store_sums(sums, bias, out, first * F, count, adds, rows, (rows, rows), C, W)


@gluon.jit(do_not_specialize=["first_row", "last_row"])
def decode(parts, out, first_row, last_row, rows, columns, group_columns: gl.constexpr, W: gl.constexpr,
        F: gl.constexpr, UNITS: gl.constexpr):
    """As that of `triton_decoding`: a program for each F rows and W * UNITS * 64 columns."""
    S: gl.constexpr = 8 * UNITS
    C: gl.constexpr = F // 8
    L5: gl.constexpr = gl.BlockedLayout([1, 1, 8, 1, 8], [1, 4, 1, 8, 1], [W, 1, 1, 1, 1], [2, 4, 1, 3, 0])
    L3: gl.constexpr = gl.SliceLayout(2, word_layout(W))
    word = gl.program_id(0) * C + along(2, C, L3)
    octet = (gl.program_id(1) * W + along(0, W, L3)) * S + along(1, S, L3)
    tile = decoded(parts, first_row // 8 + word, octet, rows // 8, columns, group_columns, W, S, C)
    tile = gl.convert_layout(tile.reshape([W, S, 8, C, 8]), L5)
    octet = (gl.program_id(1) * W + along(0, W, L5)) * S + along(1, S, L5)
    column = octet * 8 + along(2, 8, L5)
    into = (gl.program_id(0) * F + along(3, C, L5) * 8 + along(4, 8, L5)).to(gl.int64)
    gl.store(out + into * columns + column, tile.to(out.dtype.element_ty),
        mask=(first_row + into < last_row) & (column < columns))
