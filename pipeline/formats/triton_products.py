"""Products with stored matrices on a GPU by kernels that decode them, for few rows of x in registers, else in scratch.

What is decoded has the bits of `decoded_rows`, and sums are in fp32. How the columns are shared out, and in which order
they are added, follows from the matrix alone: a row of few has the same bits whatever the others are. More rows are
multiplied by cuBLAS, which rounds otherwise and may choose by their number. So are the blocks of `batch_invariant`,
whose size is fixed.

Letters in names: T tokens of this pass, D columns, F rows of a matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from triton.experimental.gluon import language as gl
from triton.runtime import driver

from pipeline.formats import triton_awq, triton_decoding
from pipeline.formats.early_launches import early
from pipeline.formats.encoded import GPU_BLOCK_BYTES, Encoded
from pipeline.formats.neighbours import MANY_ROWS, all_rows, joined, runs

ROWS_AT_ONCE = 16
"""Rows of x, in 16 bits, for which a matrix is decoded in registers once."""
FEW = 64
"""That many times in turn for more rows, where that is quick, takes at most as long as scratch does, as measured on an
H200."""
AWQ_TILE = 64
"""Rows of a program: 8 threads have a word of 8 rows each."""
ONE_GROUP = 1 << 30
"""As many columns as no matrix has."""
GLUON_DTYPES = {torch.float32: gl.float32, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}


def try_out(device: torch.device, *, has_float8: bool) -> None:
    """Compile and run a product with a small matrix. Raises whatever Triton raises."""
    scales = torch.ones(16, 1, dtype=torch.bfloat16, device=device)
    words = torch.zeros(16, 16, dtype=torch.int32, device=device)
    encoded = Encoded("int4", (16, 128), words, scales, 128, torch.bfloat16, zeros=8)
    if has_float8:
        encoded = Encoded("fp8", (16, 64), words, scales, 64, torch.bfloat16)
    product(encoded, torch.zeros(1, encoded.shape[1], dtype=torch.bfloat16, device=device), None)
    torch.cuda.synchronize(device)


def products(
    matrices: Sequence[Encoded], x_TD: torch.Tensor, biases: Sequence[torch.Tensor | None]
) -> list[torch.Tensor]:
    """`x_TD` times each transposed matrix, plus its bias, with the bits of single products.

    With few rows of x, matrices that lie one behind the other are multiplied in one launch: a GPU needs a few
    microseconds to begin with each.
    """
    if len(x_TD) > min(map(few_rows, matrices)) or x_TD.dtype is torch.float32:
        return [product(encoded, x_TD, bias_F) for encoded, bias_F in zip(matrices, biases, strict=True)]
    x_TD = x_TD.contiguous()
    found: dict[int, torch.Tensor] = {}
    for run in runs(matrices, biases):
        results = _products_of_few([matrices[one] for one in run], x_TD, [biases[one] for one in run])
        found.update(zip(run, results, strict=True))
    return [found[index] for index in range(len(matrices))]


def product(
    encoded: Encoded, x_TD: torch.Tensor, bias_F: torch.Tensor | None, onto_TF: torch.Tensor | None = None
) -> torch.Tensor:
    """`x_TD` times the transposed matrix, plus bias: [T, F] in the dtype of `x_TD`; or `onto_TF`, which is contiguous
    and of that dtype, once that has been added to it.
    """
    rows, columns = encoded.shape
    if len(x_TD) <= few_rows(encoded) and x_TD.dtype is not torch.float32:
        (of_few_TF,) = _products_of_few([encoded], x_TD.contiguous(), [bias_F], onto_TF)
        return of_few_TF if onto_TF is None else onto_TF
    product_TF, step = x_TD.new_empty(len(x_TD), rows), min(rows, block_rows(columns, x_TD.dtype))
    scratch_FD = x_TD.new_empty(step, columns)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        decode(encoded, first, decoded_FD := scratch_FD[: last - first])
        if bias_F is None:
            torch.mm(x_TD, decoded_FD.T, out=product_TF[:, first:last])
        else:
            torch.addmm(bias_F[first:last].to(x_TD.dtype), x_TD, decoded_FD.T, out=product_TF[:, first:last])
    return product_TF if onto_TF is None else onto_TF.add_(product_TF)


def few_rows(encoded: Encoded) -> int:
    """The most rows of x for which it is decoded in registers."""
    is_quick = encoded.kind == "fp8" or (encoded.kind != "awq" and encoded.order is None and _how(encoded).in_pairs)
    return FEW if is_quick else ROWS_AT_ONCE


def block_rows(columns: int, dtype: torch.dtype) -> int:
    """How many rows are decoded at once."""
    return max(1, GPU_BLOCK_BYTES // (columns * dtype.itemsize * ROWS_AT_ONCE)) * ROWS_AT_ONCE


def decode(encoded: Encoded, first: int, into_FD: torch.Tensor) -> None:
    """Write the rows from `first` on, which is a multiple of 16, as many as `into_FD` has."""
    (count, columns), parts = into_FD.shape, _parts(encoded)
    key = (first, count, *_alike(encoded, into_FD, *parts))
    if (made := _made.get(key)) is None:
        warps, units, last = 4, 1, first + count
        before: tuple[Any, ...] = ()
        after: tuple[Any, ...]
        if encoded.kind == "awq":
            kernel, tile, width, after = triton_awq.decode, AWQ_TILE, 64, (last, *encoded.shape, encoded.group)
        else:
            how, before = _how(encoded), ((last, columns, *_steps(encoded)),)
            kernel, tile, width, after = triton_decoding.decode, 16, 16 * how.per_word, (how,)
        grid, after = (-(-count // tile), -(-columns // (width * units * warps)), 1), (*after, warps, tile, units)
        made = _made[key] = _make(kernel, grid, before, after, warps, parts, *before, into_FD, first, *after)
    if not into_FD.is_meta:
        made.kernel[made.grid](parts, *made.before, into_FD, first, *made.after)


def _products_of_few(
    matrices: Sequence[Encoded],
    x_TD: torch.Tensor,
    biases: Sequence[torch.Tensor | None],
    onto_TF: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Products with matrices that are one behind the other; that with a single one is added to `onto_TF`, if any."""
    count, sizes, encoded, bias_F = len(x_TD), [one.shape[0] for one in matrices], matrices[0], biases[0]
    if len(matrices) > 1:
        encoded, bias_F = joined(matrices), None if bias_F is None else all_rows(bias_F, sum(sizes))
    (rows, columns), parts, adds = encoded.shape, _parts(encoded), int(onto_TF is not None)
    product_F = x_TD.new_empty(count * sum(sizes)) if onto_TF is None else onto_TF.view(-1)
    at_once = 8 if count <= 8 else ROWS_AT_ONCE
    key = (at_once, *sizes, *_alike(encoded, x_TD, bias_F, product_F, *parts))
    if (made := _made.get(key)) is None:
        warps, tile, units = _tiles(encoded, sizes[0], count)
        before: tuple[Any, ...] = ()
        after: tuple[Any, ...]
        if encoded.kind == "awq":
            kernel, after = triton_awq.product, (rows, columns, encoded.group)
        else:
            how = _how(encoded)
            far = how.kind == "int4" and how.in_pairs and not how.ordered and sizes[0] >= MANY_ROWS and count <= 8
            kernel, after = triton_decoding.product, (how, far)
            before = (rows, columns, *_steps(encoded)), (sizes[0], sum(sizes[:2]))
        is_early = early(torch.device("cuda", driver.active.get_current_device()))["EARLY"]  # x may be on "meta"
        grid, after = (1, -(-rows // tile), 1), (*after, warps, tile, units, at_once, is_early)
        arguments = (x_TD, parts, *before, bias_F, product_F, count, adds, *after)
        made = _made[key] = _make(kernel, grid, before, after, warps, *arguments, launch_pdl=is_early)
    if not x_TD.is_meta:
        programs = -(-count // at_once), *made.grid[1:]
        made.kernel[programs](x_TD, parts, *made.before, bias_F, product_F, count, adds, *made.after)
    split = product_F.split([count * size for size in sizes])
    return [one.view(count, size) for one, size in zip(split, sizes, strict=True)]


class _Made(NamedTuple):
    """A compiled kernel, its programs, of a product those for `ROWS_AT_ONCE` rows of x, and its arguments that follow
    from how a matrix is stored, and from its shape: those before the result and those behind the number of its rows.
    """

    kernel: Any
    grid: tuple[int, int, int]
    before: tuple[Any, ...]
    after: tuple[Any, ...]


_made: dict[tuple[object, ...], _Made] = {}
"""By all that kernels are compiled for. To find that out from arguments takes Triton 20 us for each launch."""


def _make(
    kernel: Any,
    grid: tuple[int, int, int],
    before: tuple[Any, ...],
    after: tuple[Any, ...],
    warps: int,
    *given: Any,
    launch_pdl: bool = False,
) -> _Made:
    compiled = kernel.warmup(*given, grid=grid, num_warps=warps, enable_fp_fusion=False, launch_pdl=launch_pdl)
    compiled[grid]  # loads it
    return _Made(compiled, grid, before, after)


def _alike(encoded: Encoded, *tensors: Any) -> tuple[object, ...]:
    """What is the same for matrices with which one kernel multiplies, and for the tensors that it is called with."""
    zero = encoded.zeros if isinstance(encoded.zeros, int) else None
    stored = (encoded.kind, encoded.shape, encoded.group, encoded.rounds_to, encoded.block_rows, encoded.scaled, zero)
    seen = [(one.dtype, one.data_ptr() % 16) for one in tensors if isinstance(one, torch.Tensor)]
    given = [isinstance(one, torch.Tensor) for one in tensors]
    device = driver.active.get_current_device()
    return (device, *stored, encoded.per_zero, encoded.added, *_steps(encoded), *given, *seen)


def _tiles(encoded: Encoded, rows: int, count: int) -> tuple[int, int, int]:
    """Warps that share the columns, rows of a program, and units of columns that a warp takes at a time, as measured
    on an H200.

    The order of a sum follows from warps and units, which `count`, the rows of x, must not change, nor other matrices
    than that of `rows`: programs of more rows read x less often.
    """
    has_many = rows >= MANY_ROWS
    if encoded.kind == "awq":
        return 8 if has_many else 16, AWQ_TILE, 1
    if has_many:
        return 4, 32 if count <= 8 else 64, 1
    return 8, 16 if count <= 8 else 32, 1 if encoded.order is not None else 2


def _parts(encoded: Encoded) -> tuple[Any, ...]:
    zeros = encoded.zeros if isinstance(encoded.zeros, torch.Tensor) else None
    if encoded.kind == "awq":
        return encoded.numbers, encoded.scales, zeros
    scales = encoded.scales.view(torch.uint8) if encoded.scaled else encoded.scales
    places = (encoded.numbers, scales, zeros, encoded.order, encoded.levels)
    return (*places, encoded.outer, encoded.code, encoded.offset)


def _steps(encoded: Encoded) -> tuple[int, ...]:
    """To the next row and word or group, of numbers, scales and zeros."""
    zeros = encoded.zeros.stride() if isinstance(encoded.zeros, torch.Tensor) else (0, 0)
    return (*encoded.numbers.stride(), *encoded.scales.stride(), *zeros)


@dataclass(frozen=True)
class How:
    """What of an `Encoded` a kernel is compiled for.

    Attributes:
        per_word: numbers in a word.
        whole: whether the columns are a multiple of four words.
        in_pairs: whether its numbers can be decoded by two in 16 bits: scales have the dtype that is rounded to.
        zero: that of all numbers where there are no others.
    """

    kind: str
    per_word: int
    whole: bool
    scaled: str
    rounds_to: gl.dtype
    in_pairs: bool
    group: int
    block_rows: int
    zero: int
    per_zero: int
    added: int
    ordered: bool


def _how(encoded: Encoded) -> How:
    per_word = 4 if encoded.kind in ("int8", "uint8", "fp8") else 8
    is_half = encoded.rounds_to is not torch.float32
    return How(
        encoded.kind,
        per_word,
        encoded.shape[1] % (4 * per_word) == 0,
        encoded.scaled,
        GLUON_DTYPES[encoded.rounds_to],
        (encoded.kind == "int4" and is_half) or (encoded.kind == "fp4" and encoded.scaled == "exponent"),
        encoded.group if encoded.scales.shape[1] > 1 else ONE_GROUP,
        encoded.block_rows,
        encoded.zeros if isinstance(encoded.zeros, int) else 0,
        encoded.per_zero,
        encoded.added,
        encoded.order is not None,
    )
