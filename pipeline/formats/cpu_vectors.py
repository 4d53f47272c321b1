"""Numbers of 4 bits, decoded by the instruction of AVX-512 that looks 32 items of 16 bits up at once.

All numbers of a group stand for 16 values, whose bits fill half a register. To tell whether what it
kept is still right numba looks at the file of a kernel alone: all that a kernel calls is in its file.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.formats.lookup import E2M1, NF4

HAS_LOOK_UP = bool(binding.get_host_cpu_features().get("avx512bw"))
BYTES = 16
"""Of pairs that are decoded at once."""
I8, I16, I32, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
FLOATS, WORDS, HALVES = ir.VectorType(FLOAT, 16), ir.VectorType(I32, 16), ir.VectorType(I16, 16)
LEVELS = (tuple(float(code) for code in range(16)), E2M1, NF4)
INT4_KIND, FP4_KIND, NF4_KIND = range(3)
ROUNDS = (("bfloat16",), ("float16",), ("float16", "bfloat16"), ("bfloat16", "float16"))
LOOK_UP = "llvm.x86.avx512.permvar.hi.512"


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
        table = _table(build, levels, zero, scale, rounds)
        loaded = build.load(build.bitcast(source, ir.VectorType(I8, BYTES).as_pointer()), align=1)
        codes = build.zext(loaded, ir.VectorType(I32, BYTES))
        low, high = build.and_(codes, _all(15)), build.lshr(codes, _all(4))
        first, second = (high, low) if high_first else (low, high)
        wide = ir.VectorType(I16, 2 * BYTES)
        indices = build.bitcast(build.or_(first, build.shl(second, _all(16))), wide)
        called = cgutils.get_or_insert_function(build.module, ir.FunctionType(wide, [wide, wide]), LOOK_UP)
        build.store(build.call(called, [table, indices]), build.bitcast(target, wide.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(pairs, types.intp, types.float32, types.float32, items, kind, how), code


def _table(build: Any, levels: "tuple[float, ...]", zero: Any, scale: Any, rounds: "tuple[str, ...]") -> Any:
    """The bits of (level - zero) * scale, twice; they do not change within a group, so that LLVM makes them once."""
    floats = ir.Constant(FLOATS, [ir.Constant(FLOAT, float(np.float32(one))) for one in levels])
    values = build.fmul(build.fsub(floats, _spread(build, zero)), _spread(build, scale))
    for name in rounds:
        if name == "bfloat16":
            bits = build.bitcast(values, WORDS)
            even = build.and_(build.lshr(bits, _all(16)), _all(1))
            rounded = build.lshr(build.add(build.add(bits, _all(0x7FFF)), even), _all(16))
            rounded = build.select(build.fcmp_ordered("ord", values, values), rounded, _all(0x7FC0))
            items, values = build.trunc(rounded, HALVES), build.bitcast(build.shl(rounded, _all(16)), FLOATS)
        else:
            halves = build.fptrunc(values, ir.VectorType(ir.HalfType(), 16))
            items, values = build.bitcast(halves, HALVES), build.fpext(halves, FLOATS)
    twice = ir.Constant(ir.VectorType(I32, 32), [*range(16), *range(16)])
    return build.shuffle_vector(items, items, twice)


def _all(value: int) -> Any:
    return ir.Constant(WORDS, [value] * 16)


def _spread(build: Any, value: Any) -> Any:
    one = build.insert_element(ir.Constant(FLOATS, ir.Undefined), value, ir.Constant(I32, 0))
    return build.shuffle_vector(one, one, ir.Constant(WORDS, [0] * 16))


@functools.cache
def vectors(kind: int, how: int) -> Callable[..., None]:
    """A kernel for numbers of 4 bits in whole groups of a multiple of 32; as those of `cpu_kernels`.

    `scales` are in fp32, or bytes whose meaning `meanings` has.
    """

    @njit(cache=True, nogil=True, error_model="numpy")
    def decode(bytes_FB, scales_FG, meanings, zeros_FG, zero_steps, half_group, first, out):
        count = out.shape[1]
        for row in range(len(out)):
            for g in range(count // half_group):
                scale = meanings[scales_FG[first + row, g]] if kind == FP4_KIND else scales_FG[first + row, g]
                zero = zeros_FG[(first + row) * zero_steps[0], g * zero_steps[1]]
                begin = row * count + g * half_group
                for at in range(begin, begin + half_group, BYTES):
                    look_up(bytes_FB, at, zero, scale, out, kind, how)

    return decode
