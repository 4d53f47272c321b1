"""Numbers of 4 bits, decoded by the instruction of AVX-512 that looks 32 items of 16 bits up at once.

All numbers of a group stand for 16 values, whose bits fill half a register. To tell whether what it kept is still right
numba looks at the file of a kernel alone: all that a kernel calls is in its file, but for instructions.
"""

import functools
from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.extending import intrinsic

from pipeline.formats import cpu_instructions as cpu
from pipeline.formats.cpu_instructions import BYTES, ITEMS
from pipeline.formats.lookup import E2M1, NF4

LEVELS = (tuple(map(float, range(16))), tuple(map(float, range(-8, 8))), E2M1, NF4)
INT4_KIND, SYMMETRIC_KIND, FP4_KIND, NF4_KIND = range(4)
"""Only the first has zeros."""
ROUNDS = (("bfloat16",), ("float16",), ("float16", "bfloat16"), ("bfloat16", "float16"))


@intrinsic(prefer_literal=True)
def look_up(typing: Any, pairs: Any, at: Any, zero: Any, scale: Any, items: Any, kind: Any, how: Any) -> Any:
    """Decode pairs[at : at + 16] to (level - zero) * scale, into items[at : at + 16], each of 32 bits.

    Both arrays lie without gaps, and are indexed as if they had one axis. `kind` is one of `LEVELS`, and `how` of
    `ROUNDS`: the dtypes that are rounded to, one after the other.
    """
    levels, rounds, high_first = LEVELS[kind.literal_value], ROUNDS[how.literal_value], kind.literal_value == NF4_KIND

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        pairs, at, zero, scale, items, _, _ = given
        source = build.gep(context.make_array(signature.args[0])(context, build, pairs).data, [at])
        target = build.gep(context.make_array(signature.args[4])(context, build, items).data, [at])
        table = cpu.scaled_levels(build, levels, zero if levels is LEVELS[INT4_KIND] else None, scale, rounds)
        decoded = cpu.looked_up(build, table, source, high_first=high_first)
        build.store(decoded, build.bitcast(target, ITEMS.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(pairs, types.intp, types.float32, types.float32, items, kind, how), code


@functools.cache
def vectors(kind: int, how: int) -> Callable[..., None]:
    """A kernel for numbers of 4 bits in whole groups of a multiple of 32; as those of `cpu_kernels`.

    `scales` are in fp32, or bytes whose meaning `meanings` has.
    """

    @njit(cache=True, nogil=True, error_model="numpy")
    def decode(bytes_FB, scales_FG, meanings, zeros_FG, zero_steps, half_group, first, out):
        for row in range(len(out)):
            for g in range(out.shape[1] // half_group):
                scale = meanings[scales_FG[first + row, g]] if kind == FP4_KIND else scales_FG[first + row, g]
                zero = zeros_FG[(first + row) * zero_steps[0], g * zero_steps[1]]
                begin = row * out.shape[1] + g * half_group
                for at in range(begin, begin + half_group, BYTES):
                    look_up(bytes_FB, at, zero, scale, out, kind, how)

    return decode
