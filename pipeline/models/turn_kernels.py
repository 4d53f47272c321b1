"""The Triton kernel of `paged_attention` that turns queries and keys. Its tensors are pointers here, and each has its
shape letters in its name.

Letters: N heads of a program, P pairs of channels that turn, R channels behind them, filled up to powers of two.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# fmt: off


@triton.jit
def turn_and_write(q, keys, values, cos, sin, growth, memory, numbers, q_stride, key_stride, value_stride, block_stride,
        COLUMNS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
        CHANNELS: tl.constexpr, TURNED: tl.constexpr, INTERLEAVED: tl.constexpr, VALUES: tl.constexpr,
        P: tl.constexpr, R: tl.constexpr, N: tl.constexpr, EARLY: tl.constexpr):
    """A program for each row and each N heads, of queries first, then of keys and values, if these are kept, too."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row, index = tl.program_id(0).to(tl.int64), tl.program_id(1)
    of_queries: tl.constexpr = (HEADS + N - 1) // N
    if index < of_queries:
        head_N = index * N + tl.arange(0, N)
        real_N = head_N < HEADS
        written_N = real_N
        at_N = q + row * q_stride + head_N * CHANNELS
        into_N, from_N, value_N = at_N, at_N, at_N
    else:
        head_N = (index - of_queries) * N + tl.arange(0, N)
        real_N = head_N < KV_HEADS
        block = tl.load(numbers + row * COLUMNS + 1)
        position = tl.load(numbers + row * COLUMNS)
        written_N = real_N & (block >= 0)
        at_N = keys + row * key_stride + head_N * CHANNELS
        into_N = memory + block * block_stride + (position % BLOCK_TOKENS * KV_HEADS + head_N) * CHANNELS
        from_N = values + row * value_stride + head_N * CHANNELS
        value_N = into_N + BLOCK_TOKENS * KV_HEADS * CHANNELS
    if TURNED:
        pair_P = tl.arange(0, P)
        real_P = pair_P < TURNED // 2
        first_P = pair_P * 2 if INTERLEAVED else pair_P
        second_P = first_P + (1 if INTERLEAVED else TURNED // 2)
        mask_NP, into_NP = real_N[:, None] & real_P[None, :], written_N[:, None] & real_P[None, :]
        first_NP = tl.load(at_N[:, None] + first_P[None, :], mask=mask_NP, other=0.0)
        second_NP = tl.load(at_N[:, None] + second_P[None, :], mask=mask_NP, other=0.0)
        at = row * TURNED
        turned_NP = turned(first_NP, -second_NP, cos + at + first_P, sin + at + first_P, real_P)
        partner_NP = turned(second_NP, first_NP, cos + at + second_P, sin + at + second_P, real_P)
        if index < of_queries:
            turned_NP, partner_NP = grown(turned_NP, growth, row), grown(partner_NP, growth, row)
        elif VALUES:
            move(from_N[:, None] + first_P[None, :], value_N[:, None] + first_P[None, :], mask_NP, into_NP)
            move(from_N[:, None] + second_P[None, :], value_N[:, None] + second_P[None, :], mask_NP, into_NP)
        tl.store(into_N[:, None] + first_P[None, :], turned_NP, mask=into_NP)
        tl.store(into_N[:, None] + second_P[None, :], partner_NP, mask=into_NP)
    if TURNED < CHANNELS:
        channel_R = TURNED + tl.arange(0, R)
        real_R = channel_R < CHANNELS
        mask_NR, into_NR = real_N[:, None] & real_R[None, :], written_N[:, None] & real_R[None, :]
        if index >= of_queries:
            move(at_N[:, None] + channel_R[None, :], into_N[:, None] + channel_R[None, :], mask_NR, into_NR)
            if VALUES:
                move(from_N[:, None] + channel_R[None, :], value_N[:, None] + channel_R[None, :], mask_NR, into_NR)
        elif growth is not None:
            rest_NR = tl.load(at_N[:, None] + channel_R[None, :], mask=mask_NR, other=0.0)
            tl.store(into_N[:, None] + channel_R[None, :], grown(rest_NR, growth, row), mask=into_NR)


@triton.jit
def turned(x_NP, partner_NP, cos_P, sin_P, real_P):
    """Products and their sum, each rounded."""
    dtype = x_NP.dtype
    cos_P = tl.load(cos_P, mask=real_P, other=0.0).to(dtype).to(tl.float32)
    sin_P = tl.load(sin_P, mask=real_P, other=0.0).to(dtype).to(tl.float32)
    one_NP, other_NP = x_NP.to(tl.float32) * cos_P[None, :], partner_NP.to(tl.float32) * sin_P[None, :]
    return (one_NP.to(dtype).to(tl.float32) + other_NP.to(dtype).to(tl.float32)).to(dtype)


@triton.jit
def grown(x_NP, growth, row):
    """Queries multiplied by what their row grows by, if it does."""
    if growth is not None:
        x_NP = (x_NP.to(tl.float32) * tl.load(growth + row).to(x_NP.dtype).to(tl.float32)).to(x_NP.dtype)
    return x_NP


@triton.jit
def move(source, target, readable, writable):
    """Copy items."""
    tl.store(target, tl.load(source, mask=readable, other=0.0), mask=writable)
