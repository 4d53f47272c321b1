"""What decodes quantised matrices on a CPU: numba's kernels where it is installed and they are faster, else torch.

Both give the same bits, so that the choice is one of time alone. Products have bits of their own, so that what makes
them follows from the machine and what is installed, never from a measurement.
"""

import logging
import time
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch

from pipeline.formats import cpu_compiled, cpu_kept
from pipeline.formats.cpu_threads import block_threads
from pipeline.formats.dense import StoredDense
from pipeline.formats.encoded import FEW_ROWS, Encoded
from pipeline.formats.matrix import StoredMatrix
from pipeline.formats.tensors import stored_dtype

logger = logging.getLogger("penstock")
Decode = Callable[[int, int], torch.Tensor]
"""Gives rows [first, last), [F, D]; what it gave last on this thread may be overwritten."""
ROUNDS = 3
COLUMNS = 64
"""Of a matrix by which kernels are tried out."""
ROW_COUNTS = (1, 2, 4, 8, FEW_ROWS + 1)
"""Of x, for which products have different kernels."""
_chosen: dict[tuple[object, ...], bool] = {}


def load_kernels(
    tensors: Iterable[tuple[str, int]],
    dtype: str,
    *,
    on_cpu: bool,
    quantised: bool,
    attends: bool,
    leaves_experts: bool,
) -> None:
    """Load what compiles kernels, if some may be used: a plan that is drawn up behind it finds its memory taken.

    `tensors` are dtypes, in the words of safetensors, and bytes; `dtype` is that of the settings. In bf16 there is a
    kernel that `attends`. `leaves_experts`: a GPU leaves some to the CPU.
    """
    in_bf16 = [nbytes for stored, nbytes in tensors if stored == "BF16" and dtype in ("auto", "bfloat16")]
    large = any(cpu_compiled.is_large(torch.bfloat16, 2 * nbytes) for nbytes in in_bf16)
    if leaves_experts or (on_cpu and (quantised or large or (attends and (in_bf16 or dtype == "bfloat16")))):
        cpu_compiled.kernels()


@cpu_kept.keeping()
def choose(matrices: Iterable[StoredMatrix], dtype: torch.dtype) -> None:
    """Compile, measure and choose before the first pass, with the smallest of those that are stored alike."""
    smallest: dict[tuple[object, ...], StoredMatrix] = {}
    has_large = False
    for one in sorted(matrices, key=lambda one: one.tensors[0].length):
        if isinstance(one, StoredDense):  # with another one beside it, as gate and up are multiplied
            has_large |= one.dtype == dtype and cpu_compiled.is_large(dtype, 2 * one.tensors[0].length)
        else:
            smallest.setdefault((type(one), *[part.dtype for part in one.tensors]), one)
    for one in smallest.values():
        parts = {part.short: torch.zeros(part.shape, dtype=stored_dtype(part.dtype)) for part in one.tensors}
        matrix = one.over(parts)
        matrix.decoded(dtype)
        for count in ROW_COUNTS:
            matrix.apply(torch.ones(count, one.columns, dtype=dtype))
        encoded: Callable[[], Encoded | None] = getattr(matrix, "encoded", lambda: None)
        fast = cpu_compiled.products(torch.empty(1, one.columns, dtype=dtype))
        if fast is not None and (known := encoded()) is not None:
            fast.multiply_one_of_several(known)
    if any(cpu_compiled.products(torch.empty(1, one.columns, dtype=dtype)) for one in smallest.values()):
        logger.info("numba multiplies rows in bfloat16 by quantised matrices (AVX-512 BF16), and decodes meanwhile")
    if has_large and (fast := cpu_compiled.products(torch.empty(1, COLUMNS, dtype=dtype))) is not None:
        logger.info(
            "numba multiplies rows in bfloat16 by large matrices (AVX-512 BF16); the first time it compiles for "
            "some seconds"
        )
        fast.compile_dense()


def faster(encoded: Encoded, dtype: torch.dtype, by_torch: Decode, rows: int) -> Decode | None:
    """What decodes the matrix into `dtype` faster than `by_torch`, if anything does.

    It is measured once for all matrices that are stored alike, with the first `rows` of this one, on a single thread.
    """
    products = cpu_compiled.kernels()
    if products is None or not products.can_decode(encoded):
        return None
    by_numba: Decode = products.RowDecoder(encoded, dtype).decoded_rows
    is_row_major = encoded.numbers.stride(1) == 1
    alike = (encoded.kind, encoded.scaled, is_row_major, encoded.order is not None, encoded.rounds_to, dtype)
    if alike not in _chosen:
        began = time.perf_counter()
        alone = block_threads(torch.get_num_threads())
        alone.submit(by_numba, 0, rows).result()
        compiling_seconds = time.perf_counter() - began
        items = rows * encoded.shape[1]
        rates = [items / 1e9 / alone.submit(_seconds, way, rows).result() for way in (by_numba, by_torch)]
        _chosen[alike] = rates[0] > rates[1]
        logger.info(
            "%s decodes %s to %s (G numbers a second on a thread: numba %.2f, torch %.2f; ready in %.1f s)",
            "numba" if _chosen[alike] else "torch",
            encoded.kind,
            str(dtype).removeprefix("torch."),
            *rates,
            compiling_seconds,
        )
    return by_numba if _chosen[alike] else None


def _seconds(decode: Decode, rows: int) -> float:
    """The least of some rounds."""
    times = [time.perf_counter()]
    for _ in range(ROUNDS):
        decode(0, rows)
        times.append(time.perf_counter())
    return min(end - begin for begin, end in pairwise(times))
