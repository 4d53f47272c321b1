"""What vectors of AVX-512 hold, and the instructions of a CPU that LLVM does not find by itself."""

import functools
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FEATURES = binding.get_host_cpu_features()
HAS_LOOK_UP = bool(FEATURES.get("avx512bw"))
HAS_DOTS = FEATURES.get("avx512bf16") and binding.llvm_version_info >= (20, 0, 0)
"""LLVM before that of numba 0.62 gives the instruction other types."""
BYTES = 16
"""Of pairs that are decoded at once."""
FUTEX_CALL, FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE = 202, 128, 129
"""Of Linux on x86-64, see futex(2)."""
LINE_BYTES = 64
"""What a cache takes from memory at once."""


class BrainFloat(ir.types.Type):
    """What llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"


I8, I16, I32, INDEX, FLOAT, BRAIN = *(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType(), BrainFloat()
FLOATS, WORDS, HALVES = ir.VectorType(FLOAT, 16), ir.VectorType(I32, 16), ir.VectorType(I16, 16)
ITEMS, BRAINS = ir.VectorType(I16, 2 * BYTES), ir.VectorType(BRAIN, 2 * BYTES)
E4M3 = (
    *(one / 512 for one in range(8)),
    *((1 + one % 8 / 8) * 2.0 ** (one // 8 - 7) for one in range(8, 127)),
    float("nan"),
)
"""What the numbers of e4m3 without a sign are."""
index_of = functools.partial(ir.Constant, INDEX)


def all_words(value: int) -> Any:
    """A vector of 16 equal words."""
    return ir.Constant(WORDS, [value] * 16)


def spread(build: Any, value: Any) -> Any:
    """A vector of 16 equal floats."""
    one = build.insert_element(ir.Constant(FLOATS, ir.Undefined), value, ir.Constant(I32, 0))
    return lanes(build, one, one, [0] * 16)


def lanes(build: Any, one: Any, other: Any, at: list[int], up: int = 0) -> Any:
    """What two vectors have at these places, moved `up`, in the one behind the other."""
    return build.shuffle_vector(one, other, ir.Constant(ir.VectorType(I32, len(at)), [lane + up for lane in at]))


def permuted(build: Any, table: Any, indices: Any) -> Any:
    """Items of the table, by the lowest five bits of each of 32 indices."""
    return _called(build, "llvm.x86.avx512.permvar.hi.512", ITEMS, table, indices)


def multiplied(build: Any, sums: Any, one: Any, other: Any) -> Any:
    """The sums plus products in bf16, of which neighbours go to the same sum. Numbers below normal ones are 0."""
    return _called(build, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, sums, one, other)


def ask_for(build: Any, place: Any) -> None:
    """Ask memory for the line of a place, which need not exist, to be read, and soon.

    Into a core's second cache: the first would lose lines of a tile before they are used, and has few for what is on
    its way. Eight rows by experts of 9.4 MB took 0.30 ms in the place of 0.49 (AMD EPYC of the fourth generation).
    """
    read, second_cache, data = (ir.Constant(I32, value) for value in (0, 2, 1))
    _called(build, "llvm.prefetch.p0", ir.VoidType(), place, read, second_cache, data)


def looked_up(build: Any, table: Any, source: Any, *, high_first: bool) -> Any:
    """The bits of the 32 items whose pairs lie at `source`. Of five bits that look an item up one changes nothing."""
    pairs = build.load(build.bitcast(source, ir.VectorType(I8, BYTES).as_pointer()), align=1)
    pairs = build.zext(pairs, WORDS)
    first, shift = (build.lshr(pairs, all_words(4)), 16) if high_first else (pairs, 12)
    indices = build.or_(first, build.shl(pairs, all_words(shift)))
    return permuted(build, table, build.bitcast(indices, ITEMS))


def scaled_levels(
    build: Any, levels: "tuple[float, ...]", zero: Any, scale: Any, rounds: "tuple[str, ...]", *, to_dots: bool = False
) -> Any:
    """The bits of (level - zero) * scale, twice; they do not change within a group, so that LLVM makes them once.

    What goes `to_dots` may be 0 where it is smaller than normal numbers of bf16, which are 0 to them.
    """
    floats = ir.Constant(FLOATS, [ir.Constant(FLOAT, float(np.float32(one))) for one in levels])
    values = floats if zero is None else build.fsub(floats, spread(build, zero))
    items = _rounded(build, build.fmul(values, spread(build, scale)), rounds, to_dots=to_dots)
    return lanes(build, items, items, [*range(16), *range(16)])


def scaled_bytes(build: Any, scale: Any, rounds: "tuple[str, ...]") -> Any:
    """The bits of what the 128 numbers of e4m3 without a sign are, times the scale: four tables, as `looked_up_bytes`
    takes them. They go to dots.
    """
    halves = []
    for begin in range(0, len(E4M3), 16):
        levels = ir.Constant(FLOATS, [ir.Constant(FLOAT, one) for one in E4M3[begin : begin + 16]])
        halves.append(_rounded(build, build.fmul(levels, spread(build, scale)), rounds, to_dots=True))
    return [lanes(build, *halves[at : at + 2], [*range(32)]) for at in range(0, len(halves), 2)]


def looked_up_bytes(build: Any, tables: Any, source: Any) -> Any:
    """The bits of the 32 items whose bytes lie at `source`: of six bits each, by the seventh, with the sign."""
    codes = build.zext(build.load(build.bitcast(source, ir.VectorType(I8, 2 * BYTES).as_pointer()), align=1), ITEMS)
    name = "llvm.x86.avx512.vpermi2var.hi.512"
    small, large = (_called(build, name, ITEMS, tables[at], codes, tables[at + 1]) for at in (0, 2))
    is_large = build.icmp_unsigned("!=", build.and_(codes, _all_items(64)), _all_items(0))
    signs = build.shl(build.and_(codes, _all_items(128)), _all_items(8))
    return build.xor(build.select(is_large, large, small), signs)


def _all_items(value: int) -> Any:
    return ir.Constant(ITEMS, [value] * (2 * BYTES))


def _rounded(build: Any, values: Any, rounds: "tuple[str, ...]", *, to_dots: bool) -> Any:
    """The bits of 16 floats, rounded to one dtype after the other."""
    for name in rounds:
        if to_dots and name == "bfloat16":
            items = build.bitcast(build.fptrunc(values, ir.VectorType(BRAIN, 16)), HALVES)
        elif name == "bfloat16":
            bits = build.bitcast(values, WORDS)
            even = build.and_(build.lshr(bits, all_words(16)), all_words(1))
            rounded = build.lshr(build.add(build.add(bits, all_words(0x7FFF)), even), all_words(16))
            rounded = build.select(build.fcmp_ordered("ord", values, values), rounded, all_words(0x7FC0))
            items, values = build.trunc(rounded, HALVES), build.bitcast(build.shl(rounded, all_words(16)), FLOATS)
        else:
            halves = build.fptrunc(values, ir.VectorType(ir.HalfType(), 16))
            items, values = build.bitcast(halves, HALVES), build.fpext(halves, FLOATS)
    return items


def _called(build: Any, name: str, result: Any, *given: Any) -> Any:
    function = ir.FunctionType(result, [one.type for one in given])
    return build.call(cgutils.get_or_insert_function(build.module, function, name), given)


@intrinsic
def at_address(typing: Any, address: Any) -> Any:
    """The memory that begins there."""
    return types.voidptr(types.int64), lambda _, build, __, given: build.inttoptr(given[0], cgutils.voidptr_t)


@intrinsic
def word_at(typing: Any, address: Any) -> Any:
    """The number that lies there."""

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        return build.load(build.inttoptr(given[0], INDEX.as_pointer()))

    return types.int64(types.int64), code


@intrinsic
def call(typing: Any, address: Any, given: Any) -> Any:
    """Call what is compiled there with one number."""

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [INDEX])
        build.call(build.inttoptr(given[0], kind.as_pointer()), [given[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


def _shared(context: Any, build: Any, signature: Any, given: Any) -> Any:
    """Where the number lies that threads share."""
    data = context.make_array(signature.args[0])(context, build, given[0]).data
    return build.gep(data, [given[1]])


@intrinsic
def claim(typing: Any, numbers: Any, at: Any, more: Any) -> Any:
    """Add to one of the numbers, which other threads add to as well, and return what it was."""

    def code(context: Any, build: Any, *given: Any) -> Any:
        return build.atomic_rmw("add", _shared(context, build, *given), given[1][2], "seq_cst")

    return types.int64(numbers, types.intp, types.int64), code


@intrinsic
def swap(typing: Any, numbers: Any, at: Any, value: Any) -> Any:
    """Write one of these numbers, and return what it was."""

    def code(context: Any, build: Any, *given: Any) -> Any:
        return build.atomic_rmw("xchg", _shared(context, build, *given), given[1][2], "seq_cst")

    return types.int64(numbers, types.intp, types.int64), code


@intrinsic
def peek(typing: Any, numbers: Any, at: Any) -> Any:
    """One of these numbers, as it is now."""

    def code(context: Any, build: Any, *given: Any) -> Any:
        return build.load_atomic(_shared(context, build, *given), "seq_cst", 8)

    return types.int64(numbers, types.intp), code


@intrinsic
def sleep_while(typing: Any, numbers: Any, at: Any, value: Any) -> Any:
    """Sleep until `wake` is called for the number; not at all where it is another one. It may end sooner."""

    def code(context: Any, build: Any, *given: Any) -> Any:
        low = build.zext(build.trunc(given[1][2], I32), INDEX)
        return _futex(build, _shared(context, build, *given), FUTEX_WAIT_PRIVATE, low)

    return types.int64(numbers, types.intp, types.int64), code


@intrinsic
def wake(typing: Any, numbers: Any, at: Any, threads: Any) -> Any:
    """Wake up so many threads that sleep at this number."""

    def code(context: Any, build: Any, *given: Any) -> Any:
        return _futex(build, _shared(context, build, *given), FUTEX_WAKE_PRIVATE, given[1][2])

    return types.int64(numbers, types.intp, types.int64), code


def _futex(build: Any, place: Any, what: int, value: Any) -> Any:
    """The call of Linux by which threads sleep and are woken up. It looks at the lower half of the number."""
    nothing = index_of(0)
    given = (index_of(FUTEX_CALL), build.ptrtoint(place, INDEX), index_of(what), value, nothing, nothing, nothing)
    return _called(build, "syscall", INDEX, *given)


@intrinsic
def pause(typing: Any) -> Any:
    """Give way for some nanoseconds, while another thread is waited for."""

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        _called(build, "llvm.x86.sse2.pause", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), code
