"""Attention of rows over keys and values in blocks on a CPU: one call without the interpreter lock for all rows.

Each row is one token of an answer. The positions that it sees are cut into parts of a fixed length, threads claim one
part of one row after the other, and who ends the last part of a row joins all of them in their order. So the bits of a
row follow from what it sees alone. All is computed in fp32, by vectors of 16.
To tell whether what it kept is still right numba looks at the file of a kernel alone: all that a kernel calls is in its
file, but for instructions. A process that compiles them imports no torch.
Letters in names: R rows, S positions of a part, K kv heads, H channels of a head, P parts of all rows, L lanes.
"""

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.formats import cpu_instructions as cpu
from pipeline.formats.cpu_instructions import FLOATS, index_of
from pipeline.formats.cpu_kernels import F16, F32, ITEM_BITS, from_bits, to_bits
from pipeline.formats.cpu_waiting import CLAIMED, FIRST, WORDS

LANES = 16
MOST_HEADS = 8
"""Heads that share a kv head and are computed at once."""
AHEAD = 16
"""Memory is asked for the keys of so many positions further on, and for the values of these, while keys are multiplied
by: 16 MB of eight contexts took 2.7 ms in the place of 4.9 (AMD EPYC of the fourth generation, a thread)."""
POSITION, FIRST_SEEN, TABLE, FIRST_PART, LINE = range(5)
"""Columns of a line of the table of rows: the position; the first that it sees; the address of the numbers of its
blocks, int64; and its first part in the order of all. A line behind the last has the number of all parts there."""
LOWEST = np.float32(-127)
"""An exponent of two that stands for 0, as all below it do."""
ROUNDING = np.float32(3 << 22)
"""A float32 plus this is rounded to a whole number, which its lowest bits have."""
LOG2_E = np.float32(1.4426950408889634)
FAST = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def _items(build: Any, address: Any, kind: int) -> Any:
    """16 items at an address, as floats."""
    if kind == F32:
        return build.load(build.inttoptr(address, FLOATS.as_pointer()), align=4)
    items = build.load(build.inttoptr(address, cpu.HALVES.as_pointer()), align=2)
    if kind == F16:
        return build.fpext(build.bitcast(items, ir.VectorType(ir.HalfType(), LANES)), FLOATS)
    return build.bitcast(build.shl(build.zext(items, cpu.WORDS), cpu.all_words(16)), FLOATS)


def _fused(build: Any, one: Any, other: Any, sums: Any) -> Any:
    """A product and a sum, rounded once."""
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return build.call(cgutils.get_or_insert_function(build.module, kind, "llvm.fma.v16f32"), [one, other, sums])


@intrinsic(prefer_literal=True)
def score(
    typing: Any, row_S: Any, at: Any, offset: Any, values: Any, queries: Any, first: Any, scores: Any, kind: Any,
    heads: Any,
) -> Any:  # fmt: skip
    """Products of `heads` queries and the keys of 16 / heads positions, to scores[at * heads :], by position.

    `row_S` has addresses of what is kept of positions, which are taken from `at` on; `offset` and `values` say how far
    behind them the key and the value of this kv head begin. `queries`, [N, H], are taken from `first` on. A sum is made
    in one order: of every 16th channel, then of those 16.
    """
    item_kind, tile = kind.literal_value, range(heads.literal_value)
    width = ITEM_BITS[item_kind] // 8 * LANES

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        rows, q, into = (context.make_array(signature.args[one])(context, build, given[one]) for one in (0, 4, 6))
        _, begin, skipped, to_values, _, first_head, *_ = given
        places = range(LANES // len(tile))
        channels = cgutils.unpack_tuple(build, q.shape)[1]

        def address(place: int, further: Any) -> Any:
            at_row = build.gep(rows.data, [build.add(begin, index_of(place))])
            return build.add(build.load(at_row), further)

        starts = [address(place, skipped) for place in places]
        wanted = [[address(place + AHEAD, skipped), address(place, to_values)] for place in places]
        sums = [cgutils.alloca_once_value(build, ir.Constant(FLOATS, None)) for _ in range(LANES)]
        with cgutils.for_range(build, build.udiv(channels, index_of(LANES))) as step:
            channel = build.mul(step.index, index_of(LANES))
            query = []
            for head in tile:
                index = build.add(build.mul(build.add(first_head, index_of(head)), channels), channel)
                at_query = build.bitcast(build.gep(q.data, [index]), FLOATS.as_pointer())
                query.append(build.load(at_query, align=4))
            for place in places:
                keys = _items(build, build.add(starts[place], build.mul(step.index, index_of(width))), item_kind)
                for one in wanted[place]:
                    where = build.add(one, build.mul(step.index, index_of(width)))
                    cpu.ask_for(build, build.inttoptr(where, cgutils.voidptr_t))
                for head in tile:
                    total = sums[place * len(tile) + head]
                    build.store(_fused(build, keys, query[head], build.load(total)), total)
        left = [build.load(one) for one in sums]
        for half in (8, 4, 2, 1):
            low = [start + lane for start in range(0, 2 * LANES, 2 * half) for lane in range(half)]
            pairs = zip(left[::2], left[1::2], strict=True)
            left = [build.fadd(*(cpu.lanes(build, *pair, low, up) for up in (0, half))) for pair in pairs]
        index = build.mul(begin, index_of(len(tile)))
        build.store(left[0], build.bitcast(build.gep(into.data, [index]), FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    numbers = (types.int64,) * 3
    return types.void(row_S, *numbers, queries, types.int64, scores, kind, heads), code


@intrinsic(prefer_literal=True)
def mix(
    typing: Any, row_S: Any, count: Any, offset: Any, weights: Any, mixed: Any, at: Any, channel: Any, kind: Any,
    heads: Any, vectors: Any,
) -> Any:  # fmt: skip
    """Values of `count` positions by their weights, as `score` lays them out, added up from the first on.

    Fills, of `heads` rows of `mixed` from `at` on, 16 channels for each of the `vectors`, from `channel` on.
    """
    item_kind, tile, across = kind.literal_value, range(heads.literal_value), range(vectors.literal_value)
    item_bytes = ITEM_BITS[item_kind] // 8

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        rows, by, into = (context.make_array(signature.args[one])(context, build, given[one]) for one in (0, 3, 4))
        _, last, skipped, _, _, first_head, first_channel, *_ = given
        skipped = build.add(skipped, build.mul(first_channel, index_of(item_bytes)))
        sums = {(h, v): cgutils.alloca_once_value(build, ir.Constant(FLOATS, None)) for h in tile for v in across}
        with cgutils.for_range(build, last) as step:
            start = build.add(build.load(build.gep(rows.data, [step.index])), skipped)
            values = [_items(build, build.add(start, index_of(v * LANES * item_bytes)), item_kind) for v in across]
            for head in tile:
                index = build.add(build.mul(step.index, index_of(len(tile))), index_of(head))
                weight = cpu.spread(build, build.load(build.gep(by.data, [index])))
                for v in across:
                    build.store(_fused(build, values[v], weight, build.load(sums[head, v])), sums[head, v])
        channels = cgutils.unpack_tuple(build, into.shape)[1]
        for (head, v), total in sums.items():
            index = build.mul(build.add(first_head, index_of(head)), channels)
            index = build.add(index, build.add(first_channel, index_of(v * LANES)))
            build.store(build.load(total), build.bitcast(build.gep(into.data, [index]), FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    kinds = (row_S, types.int64, types.int64, weights, mixed, types.int64, types.int64, kind, heads, vectors)
    return types.void(*kinds), code


@njit(**FAST)
def power_of_two(exponent):
    """2 to an exponent that is at most 0: of what is left of the nearest whole number a series, to 5e-9."""
    exponent = LOWEST if exponent < LOWEST else exponent
    whole = exponent + ROUNDING
    left = exponent - (whole - ROUNDING)
    series = np.float32(1.5252734e-05)
    series = series * left + np.float32(0.00015403530)
    series = series * left + np.float32(0.0013333558)
    series = series * left + np.float32(0.0096181291)
    series = series * left + np.float32(0.055504109)
    series = series * left + np.float32(0.24022651)
    series = series * left + np.float32(0.69314718)
    series = series * left + np.float32(1)
    return series * from_bits((to_bits(whole) << np.uint32(23)) + np.uint32(0x3F800000))


@njit(**FAST)
def weigh(scores, count, heads, unit, most, total):
    """Make weights of scores, by position, `heads` of each: 2 to the score times `unit`, less the most of the head.

    Fills `most` and `total`, of each head. What is behind the last of `count` positions becomes 0.
    """
    filled = (count * heads + LANES - 1) // LANES * LANES
    for i in range(count * heads, filled):
        scores[i] = -np.inf
    high, sums = np.empty(LANES, np.float32), np.zeros(LANES, np.float32)
    high[:] = -np.inf
    for begin in range(0, filled, LANES):
        part = scores[begin : begin + LANES]
        for lane in range(LANES):
            scaled = part[lane] * unit
            part[lane] = scaled
            high[lane] = scaled if scaled > high[lane] else high[lane]
    for head in range(heads):
        one = high[head]
        for lane in range(head + heads, LANES, heads):
            one = high[lane] if high[lane] > one else one
        for lane in range(head, LANES, heads):
            high[lane] = one
        most[head] = one
    for begin in range(0, filled, LANES):
        part = scores[begin : begin + LANES]
        for lane in range(LANES):
            weight = power_of_two(part[lane] - high[lane])
            part[lane] = weight
            sums[lane] += weight
    for head in range(heads):
        one = sums[head]
        for lane in range(head + heads, LANES, heads):
            one += sums[lane]
        total[head] = one


@njit(**FAST)
def join(first, last, group, sinks, parts, weights, mixed):
    """Add up the parts [first, last) of a row, in their order, and divide by all weights, those of sinks too.

    Of the heads of a group in `parts`, filled up, the first `group` are those of the layer.
    """
    kv_heads, _, channels = parts.shape[1:]
    for n in range(kv_heads * group):
        head, member = n // group, n % group
        high, total = weights[first, head, member, 0], np.float32(0)
        for p in range(first + 1, last):
            one = weights[p, head, member, 0]
            high = one if one > high else high
        into = mixed[n * channels : (n + 1) * channels]
        into[:] = 0
        for p in range(first, last):
            shrink = power_of_two(weights[p, head, member, 0] - high)
            total += weights[p, head, member, 1] * shrink
            part = parts[p, head, member]
            for channel in range(channels):
                into[channel] += part[channel] * shrink
        if len(sinks):
            total += np.float32(2) ** (sinks[n] * LOG2_E - high)
        for channel in range(channels):
            into[channel] /= total


@functools.cache
def attend(kind: int, heads: int, vectors: int) -> Any:
    """Work of a team, for items of a kind, `heads` of a group at once, a power of two, and so many vectors of channels.

    The words: of the memory of a layer its address, the bytes of a block, and the positions in it; positions of a part;
    rows; parts of all; kv heads, heads of a group filled up to a multiple of `heads`, channels, and heads of a group as
    they are; how many sinks there are; and addresses: of the table of rows, int64 [R + 1, LINE]; of zeros for each row;
    of what scores are multiplied by to be exponents of two, and behind it the logits of sinks; of the queries,
    [R, K, filled, H]; of memory for parts, [P, K, filled, H], and for the most and the sum of their weights,
    [P, K, filled, 2]; and of what comes out, [R, N * H]: these are in fp32.
    """
    item_bytes, places = ITEM_BITS[kind] // 8, LANES // heads

    @njit(cache=True, **FAST)
    def work(words_address):
        words = carray(cpu.at_address(words_address), (WORDS,), np.int64)
        address, block_bytes, block_tokens, length, count, all_parts = words[FIRST + 1 : FIRST + 7]
        kv_heads, of_kv, channels, group, logits = words[FIRST + 7 : FIRST + 12]
        table = carray(cpu.at_address(words[FIRST + 12]), (count + 1, LINE), np.int64)
        done_R = carray(cpu.at_address(words[FIRST + 13]), (count,), np.int64)
        factors = carray(cpu.at_address(words[FIRST + 14]), (1 + logits,), np.float32)
        queries = carray(cpu.at_address(words[FIRST + 15]), (count, kv_heads, of_kv, channels), np.float32)
        parts = carray(cpu.at_address(words[FIRST + 16]), (all_parts, kv_heads, of_kv, channels), np.float32)
        weights = carray(cpu.at_address(words[FIRST + 17]), (all_parts, kv_heads, of_kv, 2), np.float32)
        mixed = carray(cpu.at_address(words[FIRST + 18]), (count, kv_heads * group * channels), np.float32)
        position_bytes = kv_heads * channels * item_bytes
        row_S = np.empty(length + LANES + AHEAD, np.int64)
        scores = np.empty((length + LANES) * heads, np.float32)
        part, r = cpu.claim(words, CLAIMED, 1), 0
        while part < all_parts:
            while part >= table[r + 1, FIRST_PART]:
                r += 1
            first = table[r, FIRST_SEEN] + (part - table[r, FIRST_PART]) * length
            seen = min(first + length, table[r, POSITION] + 1) - first
            block_B = carray(cpu.at_address(table[r, TABLE]), (table[r, POSITION] // block_tokens + 1,), np.int64)
            for s in range(seen):
                block, place = (first + s) // block_tokens, (first + s) % block_tokens
                row_S[s] = address + block_B[block] * block_bytes + place * position_bytes
            row_S[seen:] = row_S[seen - 1]
            for head in range(kv_heads):
                key = head * channels * item_bytes
                value = key + block_tokens * position_bytes
                for member in range(0, of_kv, heads):
                    for s in range(0, seen, places):
                        score(row_S, s, key, value, queries[r, head], member, scores, kind, heads)
                    most, total = weights[part, head, member:, 0], weights[part, head, member:, 1]
                    weigh(scores, seen, heads, factors[0], most, total)
                    for channel in range(0, channels, vectors * LANES):
                        mix(row_S, seen, value, scores, parts[part, head], member, channel, kind, heads, vectors)
            begin, end = table[r, FIRST_PART], table[r + 1, FIRST_PART]
            if cpu.claim(done_R[r : r + 1], 0, 1) + 1 == end - begin:
                join(begin, end, group, factors[1:], parts, weights, mixed[r])
            part = cpu.claim(words, CLAIMED, 1)

    return work
