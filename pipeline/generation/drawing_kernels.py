"""The Triton kernels of `fused_drawing`: what `drawing` does, in the same arithmetic, bit for bit.

Their tensors are pointers here. Letters: C tokens of a chunk, K chunks of a row, B blocks of T tokens, N bins, P copies
of bins.
"""

import triton
import triton.language as tl
from triton.language.extra.libdevice import exp

from pipeline.generation import drawing

# fmt: off

SEEN, RULED_OUT, FORCED = tl.constexpr(drawing.SEEN), tl.constexpr(drawing.RULED_OUT), tl.constexpr(drawing.FORCED)
COUNT_BITS, COLUMNS = tl.constexpr(drawing.COUNT_BITS), tl.constexpr(drawing.COLUMNS)
LOGITS, TABLE, TEMPERATURE, TOP_K, TOP_P = (tl.constexpr(column) for column in range(5))
FARTHEST, REPETITION, PRESENCE, FREQUENCY, UNIFORM = (tl.constexpr(column) for column in range(5, drawing.COLUMNS))
INFINITE_KEY, UNSIGNED = tl.constexpr(drawing.INFINITE_KEY), tl.constexpr(0x7FFFFFFF)


@triton.jit
def best_of(value_C, token_C):
    """The greatest value, NaN above all, of equal ones the first: 32 bits in the order of values, then the token's."""
    bits_C = (value_C + 0.0).to(tl.int32, bitcast=True)  # -0.0 is 0.0
    order_C = tl.where(value_C != value_C, UNSIGNED, bits_C ^ ((bits_C >> 31) & UNSIGNED))
    return tl.max((order_C.to(tl.int64) << 32) | (token_C ^ UNSIGNED), 0)


@triton.jit
def token_of(best):
    """Of what `best_of` gave."""
    return (best & 0xFFFFFFFF).to(tl.int32) ^ UNSIGNED


@triton.jit
def value_of(best):
    """Of what `best_of` gave; NaN as any NaN."""
    order = (best >> 32).to(tl.int32)
    return (order ^ ((order >> 31) & UNSIGNED)).to(tl.float32, bitcast=True)


@triton.jit
def best_of_row(bests, K: tl.constexpr, CHUNKS: tl.constexpr):
    """The best one of all chunks."""
    chunk_K = tl.arange(0, K)
    return tl.max(tl.load(bests + chunk_K, mask=chunk_K < CHUNKS, other=-0x8000000000000000), 0)


@triton.jit
def likelihood_of(distance, UNIT: tl.constexpr):
    """A whole number. This exp is that of torch; Triton's own is another."""
    return (exp(-distance) * UNIT).to(tl.int64)


@triton.jit
def last_of_row(number, found, top_k, top_p, UNIT: tl.constexpr):
    """The key of the farthest tokens that are kept, and how many of those: the first ones."""
    last, ties = tl.full([], INFINITE_KEY, tl.int32), tl.full([], UNSIGNED, tl.int64)
    if top_k:
        last = tl.load(found).to(tl.int32)
    if top_p:
        last = tl.load(found + 2).to(tl.int32)
        over = tl.load(found + 3)
        ties = over // tl.maximum(likelihood_of(last.to(tl.float32, bitcast=True), UNIT), 1) + 1
    farthest = tl.load(number + FARTHEST).to(tl.float32).to(tl.int32, bitcast=True)
    return tl.minimum(last, farthest), tl.where(farthest < last, UNSIGNED, ties)


@triton.jit
def keys_of(scores, number, best, token_C, SIZE: tl.constexpr):
    """How far tokens are from the best score, in units of the temperature; the order of its bits is that of floats."""
    score_C = tl.load(scores + token_C, mask=token_C < SIZE, other=float("-inf"))
    distance_C = tl.div_rn(value_of(best) - score_C, tl.load(number + TEMPERATURE).to(tl.float32))
    return distance_C, distance_C.to(tl.int32, bitcast=True) & UNSIGNED


@triton.jit(do_not_specialize=["penalised", "ruled", "kept"])
def score(logits, tables, scores, numbers, bests, found, penalised, ruled, kept, SIZE: tl.constexpr,
        STRIDE: tl.constexpr, CHUNKS: tl.constexpr, C: tl.constexpr):
    """Scores from logits, and of each chunk the best logit and the best score; nothing is `found` yet."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    number = numbers + row * COLUMNS
    token_C = chunk * C + tl.arange(0, C)
    real_C = token_C < SIZE
    score_C = tl.load(logits + tl.load(number + LOGITS).to(tl.int64) * SIZE + token_C, mask=real_C, other=float("-inf"))
    best = best_of(score_C, token_C)
    tl.store(bests + row * 2 * CHUNKS + chunk, best)
    if penalised:
        told_C = tl.load(tables + tl.load(number + TABLE).to(tl.int64) * SIZE + token_C, mask=real_C, other=0)
        repetition = tl.load(number + REPETITION).to(tl.float32)
        seen_C = tl.div_rn(tl.maximum(score_C, 0.0), repetition) + tl.minimum(score_C, 0.0) * repetition
        score_C = tl.where((told_C & SEEN) != 0, seen_C, score_C)
        count_C = (told_C >> COUNT_BITS).to(tl.float32)
        score_C = score_C - count_C * tl.load(number + FREQUENCY).to(tl.float32)
        score_C = score_C - tl.minimum(count_C, 1.0) * tl.load(number + PRESENCE).to(tl.float32)
        if ruled:
            score_C = tl.where((told_C & RULED_OUT) != 0, float("-inf"), score_C)
            score_C = tl.where((told_C & FORCED) != 0, 0.0, score_C)
        best = best_of(tl.where(real_C, score_C, float("-inf")), token_C)
    tl.store(bests + (row * 2 + 1) * CHUNKS + chunk, best)
    tl.store(found + row * 4 + tl.arange(0, 4), 0, mask=chunk == 0)
    if kept:
        tl.store(scores + row * STRIDE + token_C, score_C, mask=real_C)


@triton.jit(do_not_specialize=["shift", "width", "counting", "top_k"])
def count(scores, numbers, bests, found, bins, shift, width, counting, top_k, SIZE: tl.constexpr,
        STRIDE: tl.constexpr, CHUNKS: tl.constexpr, K: tl.constexpr, C: tl.constexpr, UNIT: tl.constexpr,
        BINS: tl.constexpr, COPIES: tl.constexpr):
    """Add up amounts by some bits of their keys, where the bits above them are those that were found.

    Chunks take turns with copies of the bins: adding to the same number again and again is slow.
    """
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    number, found = numbers + row * COLUMNS, found + row * 4
    token_C = chunk * C + tl.arange(0, C)
    best = best_of_row(bests + (row * 2 + 1) * CHUNKS, K, CHUNKS)
    distance_C, key_C = keys_of(scores + row * STRIDE, number, best, token_C, SIZE)
    amount_C = tl.full([C], 1, tl.int64)
    above = tl.load(found)
    if counting == 0:
        amount_C = likelihood_of(distance_C, UNIT)
        if top_k:
            amount_C = tl.where(key_C > above, 0, amount_C)
        above = tl.load(found + 2)
    above = above.to(tl.int32) >> shift
    counted_C = (token_C < SIZE) & (amount_C > 0) & (((key_C >> shift) ^ above) < width)
    copy = row * COPIES + chunk % COPIES
    tl.atomic_add(bins + copy * BINS + ((key_C >> shift) & (width - 1)), amount_C, mask=counted_C, sem="relaxed")


@triton.jit(do_not_specialize=["shift", "width", "counting", "first"])
def find(numbers, found, bins, shift, width, counting, first, BINS: tl.constexpr,
        COPIES: tl.constexpr, N: tl.constexpr):
    """The bin up to which the amounts exceed what is wanted: more bits of the key, and what is wanted of that bin."""
    row = tl.program_id(0).to(tl.int64)
    number, found = numbers + row * COLUMNS, found + row * 4 + 2 * (1 - counting)
    bin_N = tl.arange(0, N)
    at_PN = bins + (row * COPIES + tl.arange(0, COPIES))[:, None] * BINS + bin_N[None, :]
    amount_N = tl.sum(tl.load(at_PN, mask=(bin_N < width)[None, :], other=0), 0)
    key, wanted = tl.load(found), tl.load(found + 1)
    if first:
        key = tl.full([], 0, tl.int64)
        if counting:
            wanted = tl.load(number + TOP_K).to(tl.int64) - 1
        else:
            total = tl.sum(amount_N, 0)
            share = tl.ceil(total.to(tl.float64) * tl.load(number + TOP_P)).to(tl.int64)
            wanted = tl.maximum(tl.minimum(share, total) - 1, 0)
    place = tl.minimum(tl.sum((tl.cumsum(amount_N, 0) <= wanted).to(tl.int32), 0), width - 1)
    tl.store(found, key | (place.to(tl.int64) << shift))
    tl.store(found + 1, wanted - tl.sum(tl.where(bin_N < place, amount_N, 0), 0))


@triton.jit(do_not_specialize=["top_k", "top_p"])
def add_blocks(scores, numbers, bests, found, sums, tied, top_k, top_p, SIZE: tl.constexpr, STRIDE: tl.constexpr,
        CHUNKS: tl.constexpr, K: tl.constexpr, B: tl.constexpr, T: tl.constexpr,
        UNIT: tl.constexpr):
    """The likelihoods of what is kept, block by block, and how many of a block are as far as the last of them."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    number = numbers + row * COLUMNS
    block_B = chunk * B + tl.arange(0, B)
    token_BT = block_B[:, None] * T + tl.arange(0, T)[None, :]
    best = best_of_row(bests + (row * 2 + 1) * CHUNKS, K, CHUNKS)
    distance_BT, key_BT = keys_of(scores + row * STRIDE, number, best, token_BT, SIZE)
    last, _ = last_of_row(number, found + row * 4, top_k, top_p, UNIT)
    kept_BT = (key_BT <= last) & (token_BT < SIZE)
    at_B = row * CHUNKS * B + block_B
    tl.store(sums + at_B, tl.sum(tl.where(kept_BT, likelihood_of(distance_BT, UNIT), 0), 1))
    tl.store(tied + at_B, tl.sum((kept_BT & (key_BT == last)).to(tl.int64), 1))


@triton.jit(do_not_specialize=["top_k", "top_p", "greedy"])
def pick(scores, numbers, bests, found, sums, tied, results, top_k, top_p, greedy, SIZE: tl.constexpr,
        STRIDE: tl.constexpr, CHUNKS: tl.constexpr, K: tl.constexpr, BLOCKS: tl.constexpr,
        B: tl.constexpr, T: tl.constexpr, UNIT: tl.constexpr):
    """The most likely token and its logit, the chosen one, which is the best or drawn, and the best score."""
    row = tl.program_id(0).to(tl.int64)
    number, scores = numbers + row * COLUMNS, scores + row * STRIDE
    likely = best_of_row(bests + row * 2 * CHUNKS, K, CHUNKS)
    best = best_of_row(bests + (row * 2 + 1) * CHUNKS, K, CHUNKS)
    chosen = token_of(best)
    if greedy == 0:
        last, ties = last_of_row(number, found + row * 4, top_k, top_p, UNIT)
        last_likelihood = likelihood_of(last.to(tl.float32, bitcast=True), UNIT)
        block_B = tl.arange(0, B)
        sum_B = tl.load(sums + row * BLOCKS + block_B, mask=block_B < BLOCKS, other=0)
        tied_B = tl.load(tied + row * BLOCKS + block_B, mask=block_B < BLOCKS, other=0)
        room_B = tl.maximum(ties - (tl.cumsum(tied_B, 0) - tied_B), 0)
        sum_B -= tl.maximum(tied_B - room_B, 0) * last_likelihood
        total = tl.sum(sum_B, 0)
        wanted = tl.minimum((total.to(tl.float64) * tl.load(number + UNIFORM)).to(tl.int64), total - 1)
        block = tl.minimum(tl.sum((tl.cumsum(sum_B, 0) <= wanted).to(tl.int32), 0), BLOCKS - 1)
        wanted -= tl.sum(tl.where(block_B < block, sum_B, 0), 0)
        room = tl.sum(tl.where(block_B == block, room_B, 0), 0)
        place_T = tl.arange(0, T)
        distance_T, key_T = keys_of(scores, number, best, block * T + place_T, SIZE)
        tied_T = key_T == last
        kept_T = (key_T <= last) & ((tl.cumsum(tied_T.to(tl.int64), 0) <= room) | (key_T != last))
        likely_T = tl.where(kept_T & (block * T + place_T < SIZE), likelihood_of(distance_T, UNIT), 0)
        place = tl.minimum(tl.sum((tl.cumsum(likely_T, 0) <= wanted).to(tl.int32), 0), T - 1)
        chosen = tl.minimum(block * T + place, SIZE - 1)
    tl.store(results + row * 4, token_of(likely).to(tl.float64))
    tl.store(results + row * 4 + 1, value_of(likely).to(tl.float64))
    tl.store(results + row * 4 + 2, chosen.to(tl.float64))
    tl.store(results + row * 4 + 3, value_of(best).to(tl.float64))
