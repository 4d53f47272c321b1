"""Kernels that decode rows of stored matrices on a CPU, compiled by numba when they are first asked for.

Numba keeps what it compiled on the disk, beside this file or in the user's folder of caches. They compute in fp32, as
`decoded_rows` does, and round as it does: to the nearest, and to the even one of two. They hold no interpreter lock.
A kernel is made for what is decoded, the dtype that this rounds it to, and that of `out`, whose items are
pairs of neighbours where numbers have 4 bits. `scales` and `zeros` are those of the whole matrix in fp32; where there
is but one zero, `zero_steps` are 0. `first` is the row of the matrix that `out` begins with.
A process that compiles them imports no torch, which takes a second and 250 MB.
Letters in names: B bytes of a row, D columns, F rows of a matrix, G groups of columns that share a scale, W words.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

EXACT = {"nogil": True, "error_model": "numpy"}
UINT8, INT8, FP8 = range(3)
F32, BF16, F16 = range(3)
ITEM_BITS = {F32: 32, BF16: 16, F16: 16}
NAN_BITS = np.uint32(0x7FC00000)


@intrinsic
def to_bits(typing: Any, value: Any) -> Any:
    """The bits of a float32."""
    return types.uint32(types.float32), lambda _, build, __, given: build.bitcast(given[0], ir.IntType(32))


@intrinsic
def from_bits(typing: Any, value: Any) -> Any:
    """The float32 of these bits."""
    return types.float32(types.uint32), lambda _, build, __, given: build.bitcast(given[0], ir.FloatType())


@intrinsic
def to_half_bits(typing: Any, value: Any) -> Any:
    """The bits of the nearest float16."""

    def code(_: Any, build: Any, __: Any, given: Any) -> Any:
        return build.zext(build.bitcast(build.fptrunc(given[0], ir.HalfType()), ir.IntType(16)), ir.IntType(32))

    return types.uint32(types.float32), code


@intrinsic
def to_half(typing: Any, value: Any) -> Any:
    """The nearest float16, as float32."""

    def code(_: Any, build: Any, __: Any, given: Any) -> Any:
        return build.fpext(build.fptrunc(given[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.float32), code


@njit(**EXACT)
def to_brain_bits(value):
    """The bits of the nearest bfloat16, in the upper half."""
    bits = to_bits(value)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded if value == value else NAN_BITS


@njit(**EXACT)
def rounded(value, rounds_to):
    """The value in another dtype, as float32."""
    if rounds_to == BF16:
        return from_bits(to_brain_bits(value))
    if rounds_to == F16:
        return to_half(value)
    return value


@njit(**EXACT)
def to_item(value, dtype):
    """The bits of the value in a dtype, the lowest."""
    if dtype == BF16:
        return to_brain_bits(value) >> np.uint32(16)
    if dtype == F16:
        return to_half_bits(value)
    return to_bits(value)


@njit(**EXACT)
def number(code, zero, kind):
    """What a byte stands for: e4m3, whose smallest numbers have no exponent, or a whole number."""
    if kind == FP8:
        magnitude, sign = code & np.uint32(0x7F), (code & np.uint32(0x80)) << np.uint32(24)
        bits = (magnitude << np.uint32(20)) + np.uint32(120 << 23)
        if magnitude < np.uint32(8):
            bits = to_bits(np.float32(np.int32(magnitude)) * np.float32(2.0**-9))
        if magnitude == np.uint32(0x7F):
            bits = NAN_BITS
        return from_bits(bits | sign)
    if kind == INT8:
        return np.float32(np.int8(code)) - zero
    return np.float32(np.int32(code)) - zero


@functools.cache
def int4(rounds_to: int, dtype: int) -> Callable[..., None]:
    """A kernel for whole numbers of 4 bits, the low ones first."""
    bits = np.uint64(ITEM_BITS[dtype])

    @njit(cache=True, **EXACT)
    def decode(bytes_FB, scales_FG, zeros_FG, zero_steps, half_group, first, out):
        count = out.shape[1]
        for row in range(len(out)):
            for g in range((count + half_group - 1) // half_group):
                begin, end = g * half_group, (g + 1) * half_group
                scale = scales_FG[first + row, g]
                zero = zeros_FG[(first + row) * zero_steps[0], g * zero_steps[1]]
                source, target = bytes_FB[row, begin:end], out[row, begin:end]
                for i in range(min(half_group, count - begin)):
                    code = np.uint32(source[i])
                    low = (np.float32(np.int32(code & np.uint32(15))) - zero) * scale
                    high = (np.float32(np.int32(code >> np.uint32(4))) - zero) * scale
                    low, high = to_item(rounded(low, rounds_to), dtype), to_item(rounded(high, rounds_to), dtype)
                    target[i] = np.uint64(low) | (np.uint64(high) << bits)

    return decode


@functools.cache
def nf4(rounds_to: int, dtype: int) -> Callable[..., None]:
    """A kernel for numbers of 4 bits that stand for levels, the high ones first."""
    bits, item = np.uint64(ITEM_BITS[dtype]), np.uint32 if dtype == F32 else np.uint16

    @njit(cache=True, **EXACT)
    def decode(bytes_FB, scales_FG, levels, half_group, first, out):
        decoded = np.empty(16, item)
        for row in range(len(out)):
            for g in range(out.shape[1] // half_group):
                begin, end = g * half_group, (g + 1) * half_group
                scale = scales_FG[first + row, g]
                for code in range(16):
                    decoded[code] = to_item(rounded(levels[code] * scale, rounds_to), dtype)
                source, target = bytes_FB[row, begin:end], out[row, begin:end]
                for i in range(half_group):
                    pair = source[i]
                    target[i] = np.uint64(decoded[pair >> 4]) | (np.uint64(decoded[pair & 15]) << bits)

    return decode


@functools.cache
def fp4() -> Callable[..., None]:
    """A kernel for pairs of numbers of 4 bits, whose scales have 8: `pairs` has what both mean, [256, 256]."""

    @njit(cache=True, **EXACT)
    def decode(bytes_FB, scales_FG, pairs, half_group, first, out):
        for row in range(len(out)):
            for g in range(out.shape[1] // half_group):
                begin, end = g * half_group, (g + 1) * half_group
                meant = pairs[scales_FG[first + row, g]]
                source, target = bytes_FB[row, begin:end], out[row, begin:end]
                for i in range(half_group):
                    target[i] = meant[source[i]]

    return decode


@functools.cache
def fp4_pairs(rounds_to: int, dtype: int) -> Callable[..., None]:
    """A kernel for the `pairs` of `fp4`, by what the bytes of scales mean, [256], and nibbles, [16], the low first."""
    bits = np.uint64(ITEM_BITS[dtype])

    @njit(cache=True, **EXACT)
    def combine(scales, levels, pairs):
        items = np.empty(16, np.uint32)
        for byte in range(256):
            for code in range(16):
                items[code] = to_item(rounded(levels[code] * scales[byte], rounds_to), dtype)
            for pair in range(256):
                pairs[byte, pair] = np.uint64(items[pair & 15]) | (np.uint64(items[pair >> 4]) << bits)

    return combine


@functools.cache
def bytewise(kind: int, rounds_to: int, dtype: int) -> Callable[..., None]:
    """A kernel for numbers of 8 bits."""

    @njit(cache=True, **EXACT)
    def decode(bytes_FB, scales_FG, zeros_FG, zero_steps, group, first, out):
        count = out.shape[1]
        for row in range(len(out)):
            for g in range((count + group - 1) // group):
                begin, end = g * group, (g + 1) * group
                scale = scales_FG[first + row, g]
                zero = zeros_FG[(first + row) * zero_steps[0], g * zero_steps[1]]
                source, target = bytes_FB[row, begin:end], out[row, begin:end]
                for i in range(min(group, count - begin)):
                    value = number(np.uint32(source[i]), zero, kind) * scale
                    target[i] = to_item(rounded(value, rounds_to), dtype)

    return decode


@functools.cache
def ordered(bits: int, rounds_to: int, dtype: int) -> Callable[..., None]:
    """A kernel for whole numbers of 4 or 8 bits, where `order_D` has the group of a column."""
    shifts, mask = np.uint32(8 // bits - 1), np.uint32((1 << bits) - 1)

    @njit(cache=True, **EXACT)
    def decode(bytes_FB, scales_FG, zeros_FG, zero_steps, order_D, first, out):
        for row in range(len(out)):
            scales, zeros = scales_FG[first + row], zeros_FG[(first + row) * zero_steps[0]]
            source, target = bytes_FB[row], out[row]
            for i in range(len(target)):
                code = (np.uint32(source[i >> shifts]) >> (np.uint32(i & shifts) << np.uint32(2))) & mask
                group = order_D[i]
                value = (np.float32(np.int32(code)) - zeros[group * zero_steps[1]]) * scales[group]
                target[i] = to_item(rounded(value, rounds_to), dtype)

    return decode


@njit(cache=True, **EXACT)
def transpose(words_WF, into_FW):
    """Rows of words from columns of them."""
    words, rows = words_WF.shape
    for begin in range(0, rows, 16):
        end = min(begin + 16, rows)
        for word in range(words):
            for row in range(begin, end):
                into_FW[row, word] = words_WF[word, row]


@njit(**EXACT)
def swapped(low, high, bits, mask):
    """Two words, with each upper number of `bits` of the first, and each lower one of the second, swapped."""
    other = ((low >> bits) ^ high) & mask
    return low ^ (other << bits), high ^ other


@njit(cache=True, **EXACT)
def transpose_awq(words_DW, into_FW):
    """Rows of words with 8 columns of a row each, from words with rows 0, 2, 4, 6, 1, 3, 5 and 7 of 8."""
    columns, words = words_DW.shape
    octets = columns // 8
    tile = np.empty((16, 8, words), np.uint32)
    for begin in range(0, octets, 16):
        end = min(begin + 16, octets)
        for octet in range(begin, end):
            source, target = words_DW[octet * 8 : octet * 8 + 8], tile[octet - begin]
            for word in range(words):
                a, b, c, d = source[0, word], source[1, word], source[2, word], source[3, word]
                e, f, g, h = source[4, word], source[5, word], source[6, word], source[7, word]
                a, b = swapped(a, b, np.uint32(4), np.uint32(0x0F0F0F0F))
                c, d = swapped(c, d, np.uint32(4), np.uint32(0x0F0F0F0F))
                e, f = swapped(e, f, np.uint32(4), np.uint32(0x0F0F0F0F))
                g, h = swapped(g, h, np.uint32(4), np.uint32(0x0F0F0F0F))
                a, c = swapped(a, c, np.uint32(8), np.uint32(0x00FF00FF))
                b, d = swapped(b, d, np.uint32(8), np.uint32(0x00FF00FF))
                e, g = swapped(e, g, np.uint32(8), np.uint32(0x00FF00FF))
                f, h = swapped(f, h, np.uint32(8), np.uint32(0x00FF00FF))
                target[0, word], target[1, word] = swapped(a, e, np.uint32(16), np.uint32(0xFFFF))
                target[2, word], target[3, word] = swapped(b, f, np.uint32(16), np.uint32(0xFFFF))
                target[4, word], target[5, word] = swapped(c, g, np.uint32(16), np.uint32(0xFFFF))
                target[6, word], target[7, word] = swapped(d, h, np.uint32(16), np.uint32(0xFFFF))
        for word in range(words):
            for row in range(8):
                for octet in range(begin, end):
                    into_FW[8 * word + row, octet] = tile[octet - begin, row, word]
