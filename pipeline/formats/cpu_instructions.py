"""What vectors of AVX-512 hold, and the instructions of a CPU that LLVM does not find by itself."""

import functools
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FEATURES = binding.get_host_cpu_features()
HAS_LOOK_UP = bool(FEATURES.get("avx512bw"))
HAS_DOTS = FEATURES.get("avx512bf16") and not FEATURES.get("amx-bf16") and binding.llvm_version_info >= (20, 0, 0)
"""With AMX torch multiplies many rows faster. LLVM before that of numba 0.62 gives the instruction other types."""
BYTES = 16
"""Of pairs that are decoded at once."""
LINE_BYTES = 64
"""What a cache takes from memory at once."""


class BrainFloat(ir.types.Type):
    """What llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"


I8, I16, I32, INDEX, FLOAT, BRAIN = *(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType(), BrainFloat()
FLOATS, WORDS, HALVES = ir.VectorType(FLOAT, 16), ir.VectorType(I32, 16), ir.VectorType(I16, 16)
ITEMS, BRAINS = ir.VectorType(I16, 2 * BYTES), ir.VectorType(BRAIN, 2 * BYTES)
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
    """Ask memory for the line of a place, which need not exist, to be read, and soon."""
    read, soon, data = (ir.Constant(I32, value) for value in (0, 3, 1))
    _called(build, "llvm.prefetch.p0", ir.VoidType(), place, read, soon, data)


def _called(build: Any, name: str, result: Any, *given: Any) -> Any:
    function = ir.FunctionType(result, [one.type for one in given])
    return build.call(cgutils.get_or_insert_function(build.module, function, name), given)


@intrinsic
def claim(typing: Any, numbers: Any, at: Any, more: Any) -> Any:
    """Add to one of the numbers, which other threads add to as well, and return what it was."""

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        data = context.make_array(signature.args[0])(context, build, given[0]).data
        return build.atomic_rmw("add", build.gep(data, [given[1]]), given[2], "seq_cst")

    return types.int64(numbers, types.intp, types.int64), code


@intrinsic
def pause(typing: Any) -> Any:
    """Give way for some nanoseconds, while another thread is waited for."""

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        _called(build, "llvm.x86.sse2.pause", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), code
