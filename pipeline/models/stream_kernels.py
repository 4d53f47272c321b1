"""The Triton kernels of `fused_streams`: what a half gets of several residual streams, and how it is added to them.

Their tensors are pointers here. Letters: T rows of the pass, S streams, filled up to a power of two from COUNT, J of
the WIDTH channels of a stream, M numbers that mix them: S for what is added, and S x S.
"""

import triton
import triton.language as tl

# fmt: off


@triton.jit
def sigmoid(x):
    """That of each item."""
    return 1.0 / (tl.exp(-x) + 1.0)


@triton.jit
def enter(logits, scale, base, hidden, row, mixing, stride, epsilon, COUNT: tl.constexpr, ROUNDS: tl.constexpr,
        WIDTH: tl.constexpr, S: tl.constexpr, J: tl.constexpr):
    """A program for a row and J channels of the `row` that a half gets; the first of a row writes its `mixing`.

    As `hyper_connections.enter` says, behind the product that gives `logits`, fp32 [T, COUNT + M].
    """
    token, at_S = tl.program_id(0).to(tl.int64), tl.arange(0, S)
    held_S = at_S < COUNT
    M: tl.constexpr = COUNT + COUNT * COUNT
    logits += token * (COUNT + M)
    before_S = tl.load(logits + at_S, mask=held_S, other=0.0) * tl.load(scale).to(tl.float32)
    before_S = sigmoid(before_S + tl.load(base + at_S, mask=held_S, other=0.0).to(tl.float32)) + epsilon
    at_J = tl.program_id(1) * J + tl.arange(0, J)
    at_SJ = at_S[:, None] * WIDTH + at_J[None, :]
    held_SJ = held_S[:, None] & (at_J < WIDTH)[None, :]
    hidden_SJ = tl.load(hidden + token * stride + at_SJ, mask=held_SJ, other=0.0)
    sum_J = tl.sum(hidden_SJ.to(tl.float32) * before_S[:, None], 0)
    tl.store(row + token * WIDTH + at_J, sum_J.to(hidden_SJ.dtype), mask=at_J < WIDTH)
    if tl.program_id(1) > 0:
        return
    after_S = tl.load(logits + COUNT + at_S, mask=held_S, other=0.0) * tl.load(scale + 1).to(tl.float32)
    after_S = sigmoid(after_S + tl.load(base + COUNT + at_S, mask=held_S, other=0.0).to(tl.float32)) * 2.0
    at_SS = at_S[:, None] * COUNT + at_S[None, :]
    held_SS = held_S[:, None] & held_S[None, :]
    mixed_SS = tl.load(logits + 2 * COUNT + at_SS, mask=held_SS, other=0.0) * tl.load(scale + 2).to(tl.float32)
    mixed_SS += tl.load(base + 2 * COUNT + at_SS, mask=held_SS, other=0.0).to(tl.float32)
    mixed_SS = tl.where(held_SS, mixed_SS, float("-inf"))
    highest_S = tl.where(held_S, tl.max(mixed_SS, 1), 0.0)
    mixed_SS = tl.exp(mixed_SS - highest_S[:, None])
    mixed_SS = mixed_SS / tl.where(held_S, tl.sum(mixed_SS, 1), 1.0)[:, None]
    mixed_SS = tl.where(held_SS, mixed_SS + epsilon, 0.0)
    mixed_SS = mixed_SS / (tl.sum(mixed_SS, 0) + epsilon)[None, :]
    for _ in range(ROUNDS - 1):
        mixed_SS = mixed_SS / (tl.sum(mixed_SS, 1) + epsilon)[:, None]
        mixed_SS = mixed_SS / (tl.sum(mixed_SS, 0) + epsilon)[None, :]
    mixing += token * M
    tl.store(mixing + at_S, after_S, mask=held_S)
    tl.store(mixing + COUNT + at_SS, mixed_SS, mask=held_SS)


@triton.jit
def leave(mixing, hidden, computed, stride, COUNT: tl.constexpr, WIDTH: tl.constexpr, S: tl.constexpr,
        J: tl.constexpr):
    """A program for a row and J channels of each of its streams, which are changed in place."""
    token, at_S = tl.program_id(0).to(tl.int64), tl.arange(0, S)
    at_J = tl.program_id(1) * J + tl.arange(0, J)
    held_S, held_J = at_S < COUNT, at_J < WIDTH
    hidden += token * stride
    mixing += token * (COUNT + COUNT * COUNT)
    at_SJ = at_S[:, None] * WIDTH + at_J[None, :]
    hidden_SJ = tl.load(hidden + at_SJ, mask=held_S[:, None] & held_J[None, :], other=0.0)
    dtype = hidden_SJ.dtype
    hidden_SJ = hidden_SJ.to(tl.float32)
    computed_J = tl.load(computed + token * WIDTH + at_J, mask=held_J, other=0.0).to(tl.float32)
    tl.debug_barrier()  # all of the streams are loaded before the first is stored
    for stream in tl.static_range(COUNT):
        weights_S = tl.load(mixing + COUNT + at_S * COUNT + stream, mask=held_S, other=0.0)
        into_J = computed_J * tl.load(mixing + stream) + tl.sum(hidden_SJ * weights_S[:, None], 0)
        tl.store(hidden + stream * WIDTH + at_J, into_J.to(dtype), mask=held_J)
