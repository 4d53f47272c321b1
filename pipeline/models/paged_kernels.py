"""The Triton kernels of `paged_attention`. Their tensors are pointers here, and each has its shape letters in its name.

Letters: M rows of a tile, S positions visited at a time, P parts, H channels of a head, which are filled up to a power
of two from CHANNELS. Where values are the last CHANNELS of the keys, R is what of a key is in front of them, from TAIL.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# fmt: off


@triton.jit
def first_seen_of(position, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first position that one sees."""
    seen = position * 0
    if WINDOW:
        seen = tl.maximum(position + 1 - WINDOW, 0)
    if CHUNK:
        seen = tl.maximum(position // CHUNK * CHUNK, seen)
    return seen


@triton.jit
def part_length_of(length, PART: tl.constexpr, MOST_PARTS: tl.constexpr):
    """So long that there are at most `MOST_PARTS`, in multiples of `PART`."""
    return tl.maximum(tl.cdiv(tl.cdiv(length, MOST_PARTS), PART), 1) * PART


@triton.jit
def visit(q_MH, q_MR, position_M, most_M, total_M, mixed_MH, memory, table, block_stride, kv_head, low, high,
        first_seen, end, scale, MASKED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, CAP: tl.constexpr,
        BLOCK_TOKENS: tl.constexpr, KV_HEADS: tl.constexpr, CHANNELS: tl.constexpr, TAIL: tl.constexpr,
        H: tl.constexpr, R: tl.constexpr, S: tl.constexpr, PRECISION: tl.constexpr, ITEMS: tl.constexpr):
    """Let rows look at positions [low, high), of which those outside [first_seen, end) may hold anything.

    Unless `MASKED`, every row sees all of them. A score is multiplied by `scale` or, with a CAP, by the tanh of that
    multiplied by CAP: then it is an exponent of 2. ITEMS is the type that counts the items of `memory`.
    """
    tl.static_assert(S % BLOCK_TOKENS == 0)
    channel_H, tail_R, place_S = TAIL + tl.arange(0, H), tl.arange(0, R), tl.arange(0, S)
    row_S = (place_S % BLOCK_TOKENS * KV_HEADS + kv_head).to(ITEMS) * (TAIL + CHANNELS)  # in its block: S divides `low`
    position_M = position_M.to(tl.int32)
    first_seen, end = first_seen.to(tl.int32), end.to(tl.int32)
    for first in range(low.to(tl.int32), high.to(tl.int32), S):
        position_S = first + place_S
        held_S = (position_S >= first_seen) & (position_S < end) if MASKED else position_S >= 0
        block_S = tl.load(table + first // BLOCK_TOKENS + place_S // BLOCK_TOKENS, mask=held_S, other=0).to(ITEMS)
        at_S = memory + (block_S * block_stride + row_S)
        at_SH = at_S[:, None] + channel_H[None, :]
        held_SH = held_S[:, None] & (channel_H < TAIL + CHANNELS)[None, :]
        keys_SH = tl.load(at_SH, mask=held_SH, other=0.0)
        scores_MS = tl.dot(q_MH, tl.trans(keys_SH), input_precision=PRECISION)
        values_SH = keys_SH
        if TAIL:
            held_SR = held_S[:, None] & (tail_R < TAIL)[None, :]
            tail_SR = tl.load(at_S[:, None] + tail_R[None, :], mask=held_SR, other=0.0)
            scores_MS += tl.dot(q_MR, tl.trans(tail_SR), input_precision=PRECISION)
        if CAP is not None:
            scores_MS = CAP * (1.0 - 2.0 / (tl.exp(2.0 * scores_MS * scale) + 1.0))
        if MASKED:
            visible_MS = position_S[None, :] <= position_M[:, None]
            if WINDOW:
                visible_MS &= position_S[None, :] > position_M[:, None] - WINDOW
            if CHUNK:
                visible_MS &= position_S[None, :] >= position_M[:, None] // CHUNK * CHUNK
            scores_MS = tl.where(visible_MS, scores_MS, float("-inf"))
        unit = scale if CAP is None else 1.0
        higher_M = tl.maximum(most_M, tl.max(scores_MS, 1) * unit)
        base_M = tl.where(higher_M == float("-inf"), 0.0, higher_M)
        weight_MS = tl.exp2(scores_MS * unit - base_M[:, None])
        shrink_M = tl.exp2(most_M - base_M)
        if not TAIL:
            values_SH = tl.load(at_SH + BLOCK_TOKENS * KV_HEADS * CHANNELS, mask=held_SH, other=0.0)
        mixed_MH = mixed_MH * shrink_M[:, None]
        mixed_MH += tl.dot(weight_MS.to(values_SH.dtype), values_SH, input_precision=PRECISION)
        total_M = total_M * shrink_M + tl.sum(weight_MS, 1)
        most_M = higher_M
    return most_M, total_M, mixed_MH


@triton.jit(do_not_specialize=["table_stride", "first_answer"])
def attend_parts(q, memory, numbers, tables, block_stride, table_stride, parts, weights, first_answer, scale,
        WINDOW: tl.constexpr, CHUNK: tl.constexpr, CAP: tl.constexpr, COLUMNS: tl.constexpr,
        BLOCK_TOKENS: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, CHANNELS: tl.constexpr,
        TAIL: tl.constexpr, H: tl.constexpr, R: tl.constexpr, PRECISION: tl.constexpr, ITEMS: tl.constexpr,
        M: tl.constexpr, S: tl.constexpr, PART: tl.constexpr,
        MOST_PARTS: tl.constexpr, EARLY: tl.constexpr):
    """A program for each part of the positions of an answer and each kv head, or each M of the heads that share one."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    tiles: tl.constexpr = (GROUP + M - 1) // M
    part, kv_head, answer = tl.program_id(0), tl.program_id(1) // tiles, tl.program_id(2).to(tl.int64)
    row = tl.load(numbers + (first_answer + answer) * COLUMNS + 3)
    if row < 0:
        return
    position = tl.load(numbers + row * COLUMNS)
    first_seen = first_seen_of(position, WINDOW, CHUNK)
    low = first_seen // S * S
    length = part_length_of(position + 1 - low, PART, MOST_PARTS)
    low += part * length
    if low > position:
        return
    table = tables + tl.load(numbers + row * COLUMNS + 2) * table_stride
    member_M = tl.program_id(1) % tiles * M + tl.arange(0, M)
    channel_H = tl.arange(0, H)
    head_M = kv_head * GROUP + member_M
    mask_MH = (member_M < GROUP)[:, None] & (channel_H < CHANNELS)[None, :]
    q_MH, q_MR = queries(q, row * HEADS + head_M, member_M < GROUP, CHANNELS, TAIL, H, R)
    most_M, total_M, mixed_MH = visit(q_MH, q_MR, position + tl.zeros([M], tl.int64),
        tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32), tl.zeros([M, H], tl.float32), memory, table,
        block_stride, kv_head, low, tl.minimum(low + length, position + 1), first_seen, position + 1, scale, True,
        WINDOW, CHUNK, CAP, BLOCK_TOKENS,
        HEADS // GROUP, CHANNELS, TAIL, H, R, S, PRECISION, ITEMS)
    count = tl.num_programs(0)
    slot_M = (answer * HEADS + head_M) * count + part
    tl.store(weights + slot_M * 2, most_M, mask=member_M < GROUP)
    tl.store(weights + slot_M * 2 + 1, total_M, mask=member_M < GROUP)
    tl.store(parts + slot_M[:, None] * CHANNELS + channel_H[None, :], mixed_MH, mask=mask_MH)


@triton.jit
def queries(q, at_M, mask_M, CHANNELS: tl.constexpr, TAIL: tl.constexpr, H: tl.constexpr, R: tl.constexpr):
    """Those at these places: what is multiplied by values too, and what lies in front of it, if anything does."""
    channel_H, tail_R = tl.arange(0, H), tl.arange(0, R)
    at_M = q + at_M * (TAIL + CHANNELS)
    mask_MH = mask_M[:, None] & (channel_H < CHANNELS)[None, :]
    q_MH = tl.load(at_M[:, None] + TAIL + channel_H[None, :], mask=mask_MH, other=0.0)
    q_MR = q_MH
    if TAIL:
        mask_MR = mask_M[:, None] & (tail_R < TAIL)[None, :]
        q_MR = tl.load(at_M[:, None] + tail_R[None, :], mask=mask_MR, other=0.0)
    return q_MH, q_MR


@triton.jit(do_not_specialize=["first_answer", "count"])
def merge(parts, weights, sinks, mixed, numbers, first_answer, count, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
        COLUMNS: tl.constexpr, S: tl.constexpr, CHANNELS: tl.constexpr, H: tl.constexpr, PART: tl.constexpr,
        MOST_PARTS: tl.constexpr, EARLY: tl.constexpr):
    """A program for each answer and head; it always adds `MOST_PARTS`, so that how many others have does not count."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    head, answer = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = tl.load(numbers + (first_answer + answer) * COLUMNS + 3)
    if row < 0:
        return
    position = tl.load(numbers + row * COLUMNS)
    length = position + 1 - first_seen_of(position, WINDOW, CHUNK) // S * S
    part_P = tl.arange(0, MOST_PARTS)
    used_P = part_P * part_length_of(length, PART, MOST_PARTS) < length
    channel_H = tl.arange(0, H)
    slot_P = (answer * tl.num_programs(0) + head) * count + part_P
    most_P = tl.load(weights + slot_P * 2, mask=used_P, other=float("-inf"))
    total_P = tl.load(weights + slot_P * 2 + 1, mask=used_P, other=0.0)
    mask_PH = used_P[:, None] & (channel_H < CHANNELS)[None, :]
    mixed_PH = tl.load(parts + slot_P[:, None] * CHANNELS + channel_H[None, :], mask=mask_PH, other=0.0)
    most = tl.max(most_P, 0)
    weight_P = tl.exp2(most_P - tl.where(length > 0, most, 0.0))
    total = tl.sum(total_P * weight_P, 0)
    if sinks is not None:
        total += sink_of(sinks, head, most)
    mixed_H = tl.sum(mixed_PH * weight_P[:, None], 0) / tl.where(length > 0, total, 1.0)
    at_H = (row * tl.num_programs(0) + head) * CHANNELS + channel_H
    tl.store(mixed + at_H, mixed_H.to(mixed.dtype.element_ty), mask=channel_H < CHANNELS)


@triton.jit
def sink_of(sinks, head, most_M):
    """Return what the logit of a head adds to sums that are relative to their highest score."""
    return tl.exp2(tl.load(sinks + head).to(tl.float32) * 1.4426950408889634 - most_M)


@triton.jit
def rows_of_tile(numbers, COLUMNS: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr):
    """The first row of the M that a program has, how many there are, and where they stand in `mixed` and in parts."""
    index = (tl.num_programs(1) - 1 - tl.program_id(1)).to(tl.int64)  # the last ones first: they look back furthest
    tile, skipped = index // (TILE // M), index % (TILE // M) * M
    tokens = tl.minimum(tl.load(numbers + tile * COLUMNS + 5) - skipped, M)
    row = tl.load(numbers + tile * COLUMNS + 4) + skipped
    return row, tokens, (index * tl.num_programs(0) + tl.program_id(0)) * M + tl.arange(0, M)


@triton.jit
def parts_of_tile(start, tokens, WINDOW: tl.constexpr, CHUNK: tl.constexpr, S: tl.constexpr, TILE: tl.constexpr,
        PART: tl.constexpr, MOST_PARTS: tl.constexpr):
    """Where the parts begin of the positions that a cell sees, how long they are, and which of them these rows see."""
    cell = start // TILE * TILE
    begin = first_seen_of(cell, WINDOW, CHUNK) // S * S
    length = part_length_of(cell + TILE - begin, PART, MOST_PARTS)
    first = (first_seen_of(start, WINDOW, CHUNK) // S * S - begin) // length
    return begin, length, first, tl.cdiv(start + tokens - begin, length)


@triton.jit
def join(most_M, total_M, mixed_MH, part_most_M, part_total_M, part_mixed_MH):
    """Add a part to those before it. Which operations are one is said, so that it rounds alike in any kernel."""
    higher_M = tl.maximum(most_M, part_most_M)
    base_M = tl.where(higher_M == float("-inf"), 0.0, higher_M)
    shrink_M, weight_M = tl.exp2(most_M - base_M), tl.exp2(part_most_M - base_M)
    total_M = tl.fma(total_M, shrink_M, part_total_M * weight_M)
    shrink_MH = tl.broadcast_to(shrink_M[:, None], mixed_MH.shape)
    return higher_M, total_M, tl.fma(mixed_MH, shrink_MH, part_mixed_MH * weight_M[:, None])


@triton.jit(do_not_specialize=["table_stride"])
def attend_tiles(q, memory, numbers, tables, block_stride, table_stride, mixed, parts, weights, sinks, scale,
        WINDOW: tl.constexpr, CHUNK: tl.constexpr, CAP: tl.constexpr, COLUMNS: tl.constexpr,
        BLOCK_TOKENS: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, CHANNELS: tl.constexpr,
        TAIL: tl.constexpr, H: tl.constexpr, R: tl.constexpr, PRECISION: tl.constexpr, ITEMS: tl.constexpr,
        M: tl.constexpr, S: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr, MOST_PARTS: tl.constexpr):
    """A program for each head and each M rows of a tile of a prompt. It goes through the parts of their positions.

    What it has of them meanwhile lies in `parts` and `weights`: not in registers, which the next part needs. Or there
    is a program for each part, too, and all is left there.
    """
    head = tl.program_id(0)
    row, tokens, slot_M = rows_of_tile(numbers, COLUMNS, M, TILE)
    if tokens <= 0:
        return
    start = tl.load(numbers + row * COLUMNS)
    table = tables + tl.load(numbers + row * COLUMNS + 2) * table_stride
    member_M = tl.arange(0, M)
    channel_H = tl.arange(0, H)
    mask_M = member_M < tokens
    mask_MH = mask_M[:, None] & (channel_H < CHANNELS)[None, :]
    at_MH = ((row + member_M)[:, None] * HEADS + head) * CHANNELS + channel_H[None, :]
    q_MH, q_MR = queries(q, (row + member_M) * HEADS + head, mask_M, CHANNELS, TAIL, H, R)
    first_seen, end = first_seen_of(start, WINDOW, CHUNK), start + tokens
    begin, length, first, last = parts_of_tile(start, tokens, WINDOW, CHUNK, S, TILE, PART, MOST_PARTS)
    count = tl.num_programs(2)
    slot_M = slot_M * count + tl.program_id(2) if count > 1 else (row + member_M) * HEADS + head
    if count > 1:
        first = tl.maximum(first, tl.program_id(2))
        last = tl.minimum(last, tl.program_id(2) + 1)
    for part in range(first, last):
        low = tl.maximum(begin + part * length, first_seen // S * S)
        high = tl.minimum(begin + (part + 1) * length, end)
        most_M = tl.full([M], float("-inf"), tl.float32)
        total_M = tl.zeros([M], tl.float32)
        mixed_MH = tl.zeros([M, H], tl.float32)
        if not (WINDOW or CHUNK):
            seen_by_all = tl.minimum(start // TILE * TILE, high)  # by all rows of the cell, wherever in it these begin
            most_M, total_M, mixed_MH = visit(q_MH, q_MR, start + member_M, most_M, total_M, mixed_MH, memory, table,
                block_stride, head // GROUP, low, seen_by_all, first_seen, end, scale, False, WINDOW, CHUNK, CAP,
                BLOCK_TOKENS, HEADS // GROUP, CHANNELS, TAIL, H, R, S, PRECISION, ITEMS)
            low = tl.maximum(low, seen_by_all)
        most_M, total_M, mixed_MH = visit(q_MH, q_MR, start + member_M, most_M, total_M, mixed_MH, memory, table,
            block_stride, head // GROUP, low, high, first_seen, end, scale, True, WINDOW, CHUNK, CAP, BLOCK_TOKENS,
            HEADS // GROUP, CHANNELS, TAIL, H, R, S, PRECISION, ITEMS)
        at_slot_MH = slot_M[:, None] * CHANNELS + channel_H[None, :]
        if part > first:
            most_M, total_M, mixed_MH = join(tl.load(weights + slot_M * 2, mask=mask_M, other=0.0),
                tl.load(weights + slot_M * 2 + 1, mask=mask_M, other=0.0),
                tl.load(parts + at_slot_MH, mask=mask_MH, other=0.0), most_M, total_M, mixed_MH)
        if count == 1 and part + 1 == last:
            if sinks is not None:
                total_M += sink_of(sinks, head, most_M)
            mixed_MH = mixed_MH / tl.where(mask_M, total_M, 1.0)[:, None]
            tl.store(mixed + at_MH, mixed_MH.to(mixed.dtype.element_ty), mask=mask_MH)
        else:
            tl.store(weights + slot_M * 2, most_M, mask=mask_M)
            tl.store(weights + slot_M * 2 + 1, total_M, mask=mask_M)
            tl.store(parts + at_slot_MH, mixed_MH, mask=mask_MH)
            tl.debug_barrier()  # it is written before it is read


@triton.jit(do_not_specialize=["count"])
def merge_tiles(parts, weights, sinks, mixed, numbers, count, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
        COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, H: tl.constexpr, M: tl.constexpr, S: tl.constexpr,
        TILE: tl.constexpr, PART: tl.constexpr, MOST_PARTS: tl.constexpr):
    """A program for each head and each M rows of a tile, whose parts it joins in their order."""
    head = tl.program_id(0)
    row, tokens, slot_M = rows_of_tile(numbers, COLUMNS, M, TILE)
    if tokens <= 0:
        return
    start = tl.load(numbers + row * COLUMNS)
    member_M = tl.arange(0, M)
    channel_H = tl.arange(0, H)
    mask_MH = (member_M < tokens)[:, None] & (channel_H < CHANNELS)[None, :]
    most_M = tl.full([M], float("-inf"), tl.float32)
    total_M = tl.zeros([M], tl.float32)
    mixed_MH = tl.zeros([M, H], tl.float32)
    _begin, _length, first, last = parts_of_tile(start, tokens, WINDOW, CHUNK, S, TILE, PART, MOST_PARTS)
    for part in range(first, last):
        at_M = slot_M * count + part
        part_most_M = tl.load(weights + at_M * 2, mask=member_M < tokens, other=float("-inf"))
        part_total_M = tl.load(weights + at_M * 2 + 1, mask=member_M < tokens, other=0.0)
        part_mixed_MH = tl.load(parts + at_M[:, None] * CHANNELS + channel_H[None, :], mask=mask_MH, other=0.0)
        most_M, total_M, mixed_MH = join(most_M, total_M, mixed_MH, part_most_M, part_total_M, part_mixed_MH)
    if sinks is not None:
        total_M += sink_of(sinks, head, most_M)
    mixed_MH = mixed_MH / tl.where(member_M < tokens, total_M, 1.0)[:, None]
    at_MH = ((row + member_M)[:, None] * tl.num_programs(0) + head) * CHANNELS + channel_H[None, :]
    tl.store(mixed + at_MH, mixed_MH.to(mixed.dtype.element_ty), mask=mask_MH)
