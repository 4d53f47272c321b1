"""The Triton kernels of `fused_delta`. Their tensors are pointers here, and each has its shape letters in its name.

Letters: Q channels of a query or key, X of all values of its heads, which are filled up to powers of two, V channels of
a value that a program has, G value heads that share a key head. W channels of the convolution lie in a row: queries,
keys, values.
"""

import triton
import triton.language as tl

# fmt: off
# The columns of `Rows.numbers`.
POSITION = tl.constexpr(0)
BLOCK = tl.constexpr(1)
TABLE = tl.constexpr(2)
STATE_READ = tl.constexpr(7)
STATE_WRITE = tl.constexpr(8)
RUN = tl.constexpr(9)
SNAPSHOT = tl.constexpr(10)
RUN_ROW = tl.constexpr(11)


@triton.jit
def follows(numbers, row, distance: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether the token so many rows before is that many positions before it in its sequence."""
    at = numbers + row * COLUMNS
    real = row >= distance
    table = tl.load(at - distance * COLUMNS + TABLE, mask=real, other=-1)
    position = tl.load(at - distance * COLUMNS + POSITION, mask=real, other=-1)
    return real & (table == tl.load(at + TABLE)) & (position == tl.load(at + POSITION) - distance)


@triton.jit
def seen_rows(numbers, row, COLUMNS: tl.constexpr, KERNEL: tl.constexpr):
    """How many of the tokens that the convolution sees before a row are rows here, and the slot that has the others."""
    before = row * 0
    for distance in tl.static_range(1, KERNEL):
        before += follows(numbers, row, distance, COLUMNS).to(tl.int64)
    return before, tl.load(numbers + (row - before) * COLUMNS + STATE_READ)


@triton.jit
def seen_by(inputs, kept, row, distance: tl.constexpr, before, slot, slot_stride, at_X, mask_X,
        W: tl.constexpr, KERNEL: tl.constexpr):
    """What went into the convolution so many tokens before a row: a row here, one that its slot keeps, or zeros."""
    here_X = tl.load(inputs + (row - distance) * W + at_X, mask=mask_X & (distance <= before), other=0.0)
    index = KERNEL - 1 - distance + before
    held_X = mask_X & (distance > before) & (slot >= 0)
    return here_X + tl.load(kept + slot * slot_stride + index * W + at_X, mask=held_X, other=0.0)


@triton.jit
def keep(inputs, kept, row, before, slot, into, slot_stride, at_X, mask_X, W: tl.constexpr, KERNEL: tl.constexpr):
    """Put what the convolution sees behind a row into a slot, which may be the one that it is read from."""
    for index in tl.static_range(0, KERNEL - 1):
        x_X = seen_by(inputs, kept, row, KERNEL - 2 - index, before, slot, slot_stride, at_X, mask_X, W, KERNEL)
        tl.store(kept + into * slot_stride + index * W + at_X, x_X, mask=mask_X)


@triton.jit
def convolved(inputs, kept, weights, row, before, slot, slot_stride, at_X, mask_X,
        W: tl.constexpr, KERNEL: tl.constexpr):
    """The convolution of some channels behind a row, through silu: what its dtype can hold."""
    dtype = inputs.dtype.element_ty
    sum_X = tl.zeros(at_X.shape, tl.float32)
    for index in tl.static_range(0, KERNEL):
        x_X = seen_by(inputs, kept, row, KERNEL - 1 - index, before, slot, slot_stride, at_X, mask_X, W, KERNEL)
        weight_X = tl.load(weights + at_X * KERNEL + index, mask=mask_X, other=0.0).to(dtype)
        sum_X += x_X.to(tl.float32) * weight_X.to(tl.float32)
    sum_X = sum_X.to(dtype).to(tl.float32)
    return (sum_X / (tl.exp(-sum_X) + 1.0)).to(dtype)


@triton.jit
def convolve(inputs, gates, conv, rates, rate_biases, kept, numbers, mixed, scalars, slot_stride, scale,
        COLUMNS: tl.constexpr, KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, KEY_DIM: tl.constexpr,
        VALUE_DIM: tl.constexpr, KERNEL: tl.constexpr, Q: tl.constexpr, X: tl.constexpr, G: tl.constexpr):
    """A program for each row and key head: its queries, keys and values, and the numbers of the rule.

    `scalars` gets for each row, one behind the other, how much is kept and how much written of each value head, the
    scale of the queries and of the keys of each key head, and the product of both. Slots of snapshots get what the
    convolution sees behind their rows.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads: tl.constexpr = KEY_HEADS * GROUP
    keys: tl.constexpr = KEY_HEADS * KEY_DIM
    W: tl.constexpr = 2 * keys + heads * VALUE_DIM
    dtype = inputs.dtype.element_ty
    if tl.load(numbers + row * COLUMNS + BLOCK) < 0:
        return
    before, slot = seen_rows(numbers, row, COLUMNS, KERNEL)
    snapshot = tl.load(numbers + row * COLUMNS + SNAPSHOT)
    channel_Q, channel_X, index_G = tl.arange(0, Q), tl.arange(0, X), tl.arange(0, G)
    q_Q, k_Q, v_X = head * KEY_DIM + channel_Q, keys + head * KEY_DIM + channel_Q, channel_X
    v_X += 2 * keys + head * GROUP * VALUE_DIM
    mask_Q, mask_X = channel_Q < KEY_DIM, channel_X < GROUP * VALUE_DIM
    query_Q = convolved(inputs, kept, conv, row, before, slot, slot_stride, q_Q, mask_Q, W, KERNEL)
    key_Q = convolved(inputs, kept, conv, row, before, slot, slot_stride, k_Q, mask_Q, W, KERNEL)
    value_X = convolved(inputs, kept, conv, row, before, slot, slot_stride, v_X, mask_X, W, KERNEL)
    tl.store(mixed + row * W + q_Q, query_Q, mask=mask_Q)
    tl.store(mixed + row * W + k_Q, key_Q, mask=mask_Q)
    tl.store(mixed + row * W + v_X, value_X, mask=mask_X)
    if snapshot >= 0:
        keep(inputs, kept, row, before, slot, snapshot, slot_stride, q_Q, mask_Q, W, KERNEL)
        keep(inputs, kept, row, before, slot, snapshot, slot_stride, k_Q, mask_Q, W, KERNEL)
        keep(inputs, kept, row, before, slot, snapshot, slot_stride, v_X, mask_X, W, KERNEL)

    query_Q, key_Q = query_Q.to(tl.float32), key_Q.to(tl.float32)
    query_scale = tl.rsqrt(tl.sum(query_Q * query_Q, 0) + 1e-6) * scale
    key_scale = tl.rsqrt(tl.sum(key_Q * key_Q, 0) + 1e-6)
    at = scalars + row * (2 * heads + 3 * KEY_HEADS) + head
    tl.store(at + 2 * heads, query_scale)
    tl.store(at + 2 * heads + KEY_HEADS, key_scale)
    tl.store(at + 2 * heads + 2 * KEY_HEADS, tl.sum(query_Q * key_Q, 0) * query_scale * key_scale)
    head_G, mask_G = head * GROUP + index_G, index_G < GROUP
    at_G = gates + row * 2 * heads + head_G
    writing_G = tl.load(at_G, mask=mask_G, other=0.0).to(tl.float32)
    keeping_G = tl.load(at_G + heads, mask=mask_G, other=0.0).to(tl.float32)
    keeping_G += tl.load(rate_biases + head_G, mask=mask_G, other=0.0).to(dtype).to(tl.float32)
    rate_G = tl.exp(tl.load(rates + head_G, mask=mask_G, other=0.0).to(dtype).to(tl.float32))
    small_G = tl.exp(-tl.abs(keeping_G))
    one_G = small_G + 1.0
    # The logarithm of 1 + x, with all digits of a small x.
    log_G = tl.where(one_G == 1.0, small_G, tl.log(one_G) * (small_G / tl.where(one_G == 1.0, 1.0, one_G - 1.0)))
    softplus_G = tl.maximum(keeping_G, 0.0) + log_G
    at_G = scalars + row * (2 * heads + 3 * KEY_HEADS) + head_G
    tl.store(at_G, tl.exp(-rate_G * softplus_G), mask=mask_G)
    tl.store(at_G + heads, (1.0 / (tl.exp(-writing_G) + 1.0)).to(dtype).to(tl.float32), mask=mask_G)


@triton.jit
def token(mixed, scalars, row, real, head, key_head, at_Q, at_V, mask_Q, mask_V, KEY_HEADS: tl.constexpr,
        HEADS: tl.constexpr, W: tl.constexpr, KEYS: tl.constexpr):
    """What a row brings to the recurrence of a value head: queries, keys, values; kept, written, query times key."""
    at, numbers = mixed + row * W, scalars + row * (2 * HEADS + 3 * KEY_HEADS)
    query_scale = tl.load(numbers + 2 * HEADS + key_head, mask=real, other=0.0)
    key_scale = tl.load(numbers + 2 * HEADS + KEY_HEADS + key_head, mask=real, other=0.0)
    product = tl.load(numbers + 2 * HEADS + 2 * KEY_HEADS + key_head, mask=real, other=0.0)
    query_Q = tl.load(at + at_Q, mask=mask_Q & real, other=0.0).to(tl.float32) * query_scale
    key_Q = tl.load(at + KEYS + at_Q, mask=mask_Q & real, other=0.0).to(tl.float32) * key_scale
    value_V = tl.load(at + at_V, mask=mask_V & real, other=0.0).to(tl.float32)
    kept = tl.load(numbers + head, mask=real, other=0.0)
    return query_Q, key_Q, value_V, kept, tl.load(numbers + HEADS + head, mask=real, other=0.0), product


@triton.jit
def recur(mixed, scalars, matrices, numbers, out, slot_stride,
        COLUMNS: tl.constexpr, KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, KEY_DIM: tl.constexpr,
        VALUE_DIM: tl.constexpr, Q: tl.constexpr, V: tl.constexpr):
    """A program for each sequence, value head and V channels of its values goes from token to token."""
    head, channel_Q = tl.program_id(1), tl.arange(0, Q)
    channel_V = tl.program_id(2) * V + tl.arange(0, V)
    heads: tl.constexpr = KEY_HEADS * GROUP
    keys: tl.constexpr = KEY_HEADS * KEY_DIM
    W: tl.constexpr = 2 * keys + heads * VALUE_DIM
    first = tl.load(numbers + tl.program_id(0).to(tl.int64) * COLUMNS + RUN_ROW)
    if first < 0:
        return
    count = tl.load(numbers + first * COLUMNS + RUN).to(tl.int32)
    read, write = tl.load(numbers + first * COLUMNS + STATE_READ), tl.load(numbers + first * COLUMNS + STATE_WRITE)
    key_head = head // GROUP
    mask_Q, mask_V = channel_Q < KEY_DIM, channel_V < VALUE_DIM
    mask_QV = mask_Q[:, None] & mask_V[None, :]
    at_QV = (key_head * KEY_DIM + channel_Q)[:, None] * (GROUP * VALUE_DIM)
    at_QV = matrices + at_QV + (head % GROUP * VALUE_DIM + channel_V)[None, :]
    at_Q, at_V = key_head * KEY_DIM + channel_Q, 2 * keys + head * VALUE_DIM + channel_V
    matrix_QV = tl.load(at_QV + read * slot_stride, mask=mask_QV & (read >= 0), other=0.0)
    query_Q, key_Q, value_V, kept, written, product = token(mixed, scalars, first, True, head, key_head, at_Q, at_V,
        mask_Q, mask_V, KEY_HEADS, heads, W, keys)
    for index in range(count):
        row = first + index
        # The next row is on its way while this one is computed.
        next_query_Q, next_key_Q, next_value_V, next_kept, next_written, next_product = token(mixed, scalars, row + 1,
            index + 1 < count, head, key_head, at_Q, at_V, mask_Q, mask_V, KEY_HEADS, heads, W, keys)
        snapshot = tl.load(numbers + row * COLUMNS + SNAPSHOT)
        known_V = tl.sum(matrix_QV * key_Q[:, None], 0) * kept
        old_V = tl.sum(matrix_QV * query_Q[:, None], 0) * kept
        new_V = (value_V - known_V) * written
        matrix_QV = matrix_QV * kept + key_Q[:, None] * new_V[None, :]
        at_out_V = out + row * (heads * VALUE_DIM) + head * VALUE_DIM + channel_V
        tl.store(at_out_V, (old_V + new_V * product).to(out.dtype.element_ty), mask=mask_V)
        if snapshot >= 0:
            tl.store(at_QV + snapshot * slot_stride, matrix_QV, mask=mask_QV)
        query_Q, key_Q, value_V = next_query_Q, next_key_Q, next_value_V
        kept, written, product = next_kept, next_written, next_product
    tl.store(at_QV + write * slot_stride, matrix_QV, mask=mask_QV)


@triton.jit
def gated_norm(out, output_gates, weight, inputs, kept, numbers, rows, epsilon, slot_stride,
        COLUMNS: tl.constexpr, KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, KEY_DIM: tl.constexpr,
        VALUE_DIM: tl.constexpr, KERNEL: tl.constexpr, Q: tl.constexpr, X: tl.constexpr, G: tl.constexpr,
        V: tl.constexpr):
    """A program for each row and key head: the norm of each of its value heads, then the gate, in place.

    Rows without a token get zeros. The slot of a sequence gets what the convolution sees behind its last row here.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads: tl.constexpr = KEY_HEADS * GROUP
    keys: tl.constexpr = KEY_HEADS * KEY_DIM
    W: tl.constexpr = 2 * keys + heads * VALUE_DIM
    dtype = out.dtype.element_ty
    index_G, channel_V = tl.arange(0, G), tl.arange(0, V)
    mask_GV = (index_G < GROUP)[:, None] & (channel_V < VALUE_DIM)[None, :]
    at_GV = row * heads * VALUE_DIM + (head * GROUP + index_G)[:, None] * VALUE_DIM + channel_V[None, :]
    if tl.load(numbers + row * COLUMNS + BLOCK) < 0:
        tl.store(out + at_GV, tl.zeros([G, V], dtype), mask=mask_GV)
        return
    x_GV = tl.load(out + at_GV, mask=mask_GV, other=0.0).to(tl.float32)
    scale_G = tl.rsqrt(tl.sum(x_GV * x_GV, 1) * (1.0 / VALUE_DIM) + epsilon)
    weight_V = tl.load(weight + channel_V, mask=channel_V < VALUE_DIM, other=0.0).to(dtype).to(tl.float32)
    x_GV = ((x_GV * scale_G[:, None]).to(dtype).to(tl.float32) * weight_V[None, :]).to(dtype).to(tl.float32)
    gate_GV = tl.load(output_gates + at_GV, mask=mask_GV, other=0.0).to(tl.float32)
    tl.store(out + at_GV, (x_GV * (gate_GV / (tl.exp(-gate_GV) + 1.0))).to(dtype), mask=mask_GV)

    next_row = numbers + (row + 1) * COLUMNS
    goes_on = tl.load(next_row + POSITION, mask=row + 1 < rows, other=-1) == tl.load(numbers + row * COLUMNS) + 1
    goes_on &= tl.load(next_row + TABLE, mask=row + 1 < rows, other=-1) == tl.load(numbers + row * COLUMNS + TABLE)
    if not goes_on:
        before, slot = seen_rows(numbers, row, COLUMNS, KERNEL)
        into = tl.load(numbers + row * COLUMNS + STATE_WRITE)
        channel_Q, channel_X = tl.arange(0, Q), tl.arange(0, X)
        mask_Q, mask_X = channel_Q < KEY_DIM, channel_X < GROUP * VALUE_DIM
        at_Q, at_X = head * KEY_DIM + channel_Q, 2 * keys + head * GROUP * VALUE_DIM + channel_X
        keep(inputs, kept, row, before, slot, into, slot_stride, at_Q, mask_Q, W, KERNEL)
        keep(inputs, kept, row, before, slot, into, slot_stride, keys + at_Q, mask_Q, W, KERNEL)
        keep(inputs, kept, row, before, slot, into, slot_stride, at_X, mask_X, W, KERNEL)
