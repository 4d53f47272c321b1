"""Products of few rows by experts on a CPU: one call without the interpreter lock for all experts, gate, up and down.

Operation by operation each expert takes the lock twenty times, which the event loop wants meanwhile, and torch brings
weights into an order of its own first. Here a thread reads them once, in order. A sum has the same bits however many
rows and threads there are. Numbers are in bf16, in FP8 and rounded once their scale is applied, as `Encoded` says, or
in FP4 in pairs, with exponents as scales.
Letters in names: T tokens of this pass, D columns, F rows of a matrix, P places: the uses of experts by rows.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit, types

from pipeline.formats import cpu_kept
from pipeline.formats.cpu_instructions import at_address, claim, pause
from pipeline.formats.cpu_kernels import from_bits, to_bits

BF16, FP8, FP4 = range(3)
NEXT, DONE, CLAIMED = 0, 8, 16
"""Numbers that threads share, each in a cache line of its own: pieces that are claimed, and that are done."""
PIECE_ROWS = 64
"""The part of a matrix that a thread claims at once, which takes it 10 to 25 us."""
COLUMNS = 10
"""Of a line of the table: addresses of numbers and scales of gate, up and down; how many columns of gate and up, and of
down, share a scale, none in bf16; and where the places of the expert begin and end."""
SIGNATURE = (
    types.int64[::1],
    types.int64[:, ::1],
    types.float32[::1],
    types.float32[:, ::1],
    types.int64[::1],
    types.float32[:, ::1],
    types.uint16[:, ::1],
)
"""The arguments of a `kernel`."""
FAST = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}


@njit(**FAST)
def brain(value):
    """The bits of the nearest bf16, in the upper half; of what is a number."""
    bits = to_bits(value)
    return bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))


@njit(**FAST)
def nearest(value):
    """The nearest bf16, as float32."""
    return from_bits(brain(value) & np.uint32(0xFFFF0000)) if value == value else value


@njit(**FAST)
def decode(kind, rounds, codes, scale, decoded):
    """Numbers that share a scale, but for those of 4 bits."""
    for column in range(len(codes)):
        code = np.uint32(codes[column])
        if kind == BF16:
            decoded[column] = from_bits(code << np.uint32(16))
        else:
            magnitude = code & np.uint32(0x7F)
            # The exponent has a bias of 7 in the place of 127. No power of two makes up for that: it might be put
            # together with the scale, and that be infinite.
            value = from_bits((magnitude << np.uint32(20)) + np.uint32(0x3C000000))
            value = np.float32(magnitude) * np.float32(2.0**-9) if magnitude < np.uint32(8) else value
            value = (-value if code & np.uint32(0x80) else value) * scale
            value = from_bits(brain(value) & np.uint32(0xFFFF0000)) if rounds else value
            decoded[column] = from_bits(np.uint32(0x7FC00000)) if magnitude == np.uint32(0x7F) else value


@njit(**FAST)
def of_e2m1(code):
    """What a number of 4 bits stands for: sign, two bits of exponent and one behind the point."""
    size = code & np.uint32(7)
    value = from_bits((size << np.uint32(22)) + np.uint32(0x3F000000))
    value = np.float32(size) * np.float32(0.5) if size < np.uint32(2) else value
    return -value if code & np.uint32(8) else value


@njit(**FAST)
def decode_pairs(codes, exponent, decoded):
    """Numbers of 4 bits, two in a byte, the low one first, that share a power of two."""
    bits = np.uint32(0x00400000) if exponent == 0 else np.uint32(exponent) << np.uint32(23)
    scale = from_bits(np.uint32(0x7FC00000) if exponent == 255 else bits)
    for pair in range(len(codes)):
        code = np.uint32(codes[pair])
        decoded[2 * pair] = of_e2m1(code & np.uint32(0xF)) * scale
        decoded[2 * pair + 1] = of_e2m1(code >> np.uint32(4)) * scale


@njit(**FAST)
def decode_row(kind, rounds, numbers, scales, group, decoded):
    """All numbers of a row of a matrix."""
    if kind == BF16:
        decode(kind, rounds, numbers, np.float32(1), decoded)
    for g in range(len(scales)):
        begin, end = g * group, (g + 1) * group
        if kind == FP4:
            decode_pairs(numbers[begin // 2 : end // 2], scales[g], decoded[begin:end])
        else:
            decode(kind, rounds, numbers[begin:end], scales[g], decoded[begin:end])


@njit(**FAST)
def dot(decoded, x):
    """The sum of products."""
    total = np.float32(0)
    for column in range(len(x)):
        total += decoded[column] * x[column]
    return total


@njit(**FAST)
def gated(clamped, bounds, gate, up):
    """The silu of the gate, times up, rounded where torch rounds; or as `Clamp` says, rounded once."""
    if clamped:
        limit, slope, offset = bounds
        gate = limit if gate > limit else gate
        up = limit if up > limit else -limit if up < -limit else up
        return nearest(gate / (np.float32(1) + np.exp(-slope * gate)) * (up + offset))
    return nearest(nearest(gate / (np.float32(1) + np.exp(-gate))) * up)


@njit(**FAST)
def channels(how, bounds, line, first, wide, scales, x_TD, row_P, between_PF, memory):
    """Some channels of an expert for all its places: gate and up, rounded, and what `gated` makes of these."""
    (kind, rounds, clamped), (gates, ups), (gate_scales, up_scales), (decoded, other) = how, wide, scales, memory
    for f in range(first, min(first + PIECE_ROWS, len(gates))):
        decode_row(kind, rounds, gates[f], gate_scales[f], line[6], decoded)
        decode_row(kind, rounds, ups[f], up_scales[f], line[6], other)
        for p in range(line[8], line[9]):
            x = x_TD[row_P[p]]
            gate, up = nearest(dot(decoded, x)), nearest(dot(other, x))
            between_PF[p, f] = gated(clamped, bounds, gate, up)


@njit(**FAST)
def columns(how, line, first, downs, scales, between_PF, out_PD, decoded):
    """Some columns of what comes out for all places of an expert."""
    kind, rounds, _ = how
    for d in range(first, min(first + PIECE_ROWS, len(downs))):
        decode_row(kind, rounds, downs[d], scales[d], line[7], decoded)
        for p in range(line[8], line[9]):
            value = dot(decoded, between_PF[p])
            out_PD[p, d] = brain(value) >> np.uint32(16) if value == value else np.uint16(0x7FC0)


@functools.cache
def multiply(kind: int, rounds: bool, clamped: bool) -> Callable[..., None]:
    """The `kernel`, ready to be called: the first time on a machine another process compiles it for some seconds."""
    made = kernel(kind, rounds, clamped)
    source = "from pipeline.formats.cpu_experts import SIGNATURE, kernel; "
    cpu_kept.load(made, SIGNATURE, f"{source}kernel({kind}, {rounds}, {clamped}).compile(SIGNATURE)")
    return made


def kernel(kind: int, rounds: bool, clamped: bool) -> Any:
    """A kernel for matrices of a kind, whose numbers are rounded to bf16 if need be, with a clamped gate or silu.

    It takes `claimed`, zeros that all threads share, the `table` of experts, [E, COLUMNS] in int64, limit, slope and
    offset of a clamped gate, x_TD in fp32, the row of each place, memory for what comes between the products, [P, F] in
    fp32, and what comes out, [P, D], in the bits of bf16. All threads return when all is done.
    """
    item, scale_item = np.uint16 if kind == BF16 else np.uint8, np.uint8 if kind == FP4 else np.float32
    per_item = 2 if kind == FP4 else 1

    @njit(cache=True, **FAST)
    def work(claimed, table, clamp, x_TD, row_P, between_PF, out_PD):
        hidden, size, how = x_TD.shape[1], between_PF.shape[1], (kind, rounds, clamped)
        bounds = clamp[0], clamp[1], clamp[2]
        wide, narrow = (size + PIECE_ROWS - 1) // PIECE_ROWS, (hidden + PIECE_ROWS - 1) // PIECE_ROWS
        first, all_pieces = len(table) * wide, len(table) * (wide + narrow)
        memory, decoded = (np.empty(hidden, np.float32), np.empty(hidden, np.float32)), np.empty(size, np.float32)
        piece = claim(claimed, NEXT, 1)
        while piece < first:
            line = table[piece // wide]
            groups = (hidden + line[6] - 1) // line[6] if line[6] else 0
            gates = carray(at_address(line[0]), (size, hidden // per_item), item)
            ups = carray(at_address(line[2]), (size, hidden // per_item), item)
            gate_scales = carray(at_address(line[1]), (size, groups), scale_item)
            up_scales = carray(at_address(line[3]), (size, groups), scale_item)
            begin, scales = piece % wide * PIECE_ROWS, (gate_scales, up_scales)
            channels(how, bounds, line, begin, (gates, ups), scales, x_TD, row_P, between_PF, memory)
            claim(claimed, DONE, 1)
            piece = claim(claimed, NEXT, 1)
        while claim(claimed, DONE, 0) < first:
            pause()
        while piece < all_pieces:
            line = table[(piece - first) // narrow]
            groups = (size + line[7] - 1) // line[7] if line[7] else 0
            downs = carray(at_address(line[4]), (hidden, size // per_item), item)
            down_scales = carray(at_address(line[5]), (hidden, groups), scale_item)
            begin = (piece - first) % narrow * PIECE_ROWS
            columns(how, line, begin, downs, down_scales, between_PF, out_PD, decoded)
            claim(claimed, DONE, 1)
            piece = claim(claimed, NEXT, 1)
        while claim(claimed, DONE, 0) < all_pieces:
            pause()

    return work
