"""Rows of stored matrices on a CPU, decoded by numba's kernels.

Letters in names: D columns, F rows of a matrix, G groups of columns that share a scale.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import config

from pipeline.formats import cpu_instructions, cpu_kernels, cpu_tiles, cpu_vectors
from pipeline.formats.encoded import Encoded
from pipeline.formats.lookup import E2M1, is_exponent, level_table, looked_up, scales_in_float32
from pipeline.formats.words import by_row, transposed, unpacked

BYTEWISE = {"uint8": cpu_kernels.UINT8, "int8": cpu_kernels.INT8, "fp8": cpu_kernels.FP8}
DTYPES = {torch.float32: cpu_kernels.F32, torch.bfloat16: cpu_kernels.BF16, torch.float16: cpu_kernels.F16}
SCALED = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}
"""Of `cpu_tiles.SCALES`."""
ALL_BITS = 62
NO_MEANINGS = torch.empty(0)
_memory = threading.local()


def try_out() -> None:
    """Compile, or load, and run a small kernel. Raises what numba raises, and RuntimeError where it may not compile."""
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise RuntimeError("NUMBA_DISABLE_JIT is set")
    word = np.zeros((1, 1), np.uint32)
    cpu_kernels.transpose(word, word)


def can_decode(encoded: Encoded) -> bool:
    """Whether there are kernels for it: numbers of 4 bits are decoded in pairs."""
    return encoded.kind in BYTEWISE or encoded.order is not None or encoded.shape[1] % 2 == encoded.group % 2 == 0


class TileMatrix(NamedTuple):
    """A matrix as `cpu_tiles.products` takes it: numbers, scales, what these mean where they are bytes, and zeros, with
    the step from one to the next; half of how many columns share a scale, and how many groups of columns do so.
    """

    numbers: torch.Tensor
    scales: torch.Tensor
    meanings: torch.Tensor
    zeros: torch.Tensor
    zero_step: int
    half_group: int
    groups: int

    def words(self, step: int, x_TD: torch.Tensor, bias_F: torch.Tensor, out_TF: torch.Tensor) -> tuple[int, ...]:
        """What the kernel is given, by threads that claim so many rows at a time."""
        count, rows = out_TF.shape
        tensors = (self.numbers, self.scales, self.meanings, self.zeros, x_TD, bias_F, out_TF)
        sizes = (rows, count, step, self.zero_step, self.half_group, self.groups, x_TD.shape[1] // 2)
        return (*sizes, *[one.data_ptr() for one in tensors])


class RowDecoder:
    """Decodes rows of a matrix into a dtype. All but the numbers is made ready here."""

    def __init__(self, encoded: Encoded, dtype: torch.dtype) -> None:
        self._encoded, self._dtype = encoded, dtype
        self._is_transposed = encoded.kind == "awq" or encoded.numbers.stride(1) != 1
        self._in_pairs = encoded.kind not in BYTEWISE and encoded.order is None
        self._kernel, self._arguments = _kernel(encoded, dtype)

    def decoded_rows(self, first: int, last: int) -> torch.Tensor:
        """Rows [first, last), [F, D], in memory that the next call on this thread uses again."""
        decoded_FD = _reused("decoded", (last - first, self._encoded.shape[1]), self._dtype)
        items = decoded_FD.view(torch.int32 if self._dtype.itemsize == 4 else torch.int16).numpy()
        out = items.view(f"u{self._dtype.itemsize * (2 if self._in_pairs else 1)}")
        self._kernel(self._words(first, last).view(torch.uint8).numpy(), *self._arguments, first, out)
        return decoded_FD

    @staticmethod
    def in_registers(encoded: Encoded) -> tuple[int, int, int, TileMatrix] | None:
        """What `cpu_tiles.products` takes for a matrix that it decodes to bf16 itself: kind, how, how it is scaled, and
        the weights.

        None where it cannot.
        """
        how = _vector_rounds(encoded, torch.bfloat16, to_multiply=True)
        if how is None or encoded.kind == "awq" or not encoded.numbers.is_contiguous():
            return None
        if encoded.kind == "int4" and encoded.scales.dtype == torch.bfloat16 and encoded.scales.is_contiguous():
            kind, scales, meanings = _int4_kind(encoded), encoded.scales, NO_MEANINGS
        elif encoded.kind == "fp8":
            kind, scales, meanings = cpu_tiles.FP8_KIND, scales_of(encoded), NO_MEANINGS
        else:
            kind, scales, meanings = _vector_scales(encoded)
        zeros, (step, _) = _zeros(encoded)
        half_group, groups = encoded.group // 2, encoded.shape[1] // encoded.group
        weights = TileMatrix(encoded.numbers, scales, meanings, zeros, step, half_group, groups)
        return kind, how, SCALED[scales.dtype], weights

    @staticmethod
    def in_place(encoded: Encoded) -> tuple[int, int, int] | None:
        """What `cpu_tiles.grouped_products` takes for a matrix in FP8 whose parts it finds where they lie: how, how it
        is scaled, and the last bits of a row's number that do not change its row of scales. None where it cannot.
        """
        how, scales = _vector_rounds(encoded, torch.bfloat16, to_multiply=True), encoded.scales
        scaled = SCALED.get(torch.uint8 if is_exponent(scales) else scales.dtype)
        if how is None or scaled is None or encoded.kind != "fp8" or not encoded.numbers.is_contiguous():
            return None
        shares = scales.stride(0) == 0
        if not (shares or scales.is_contiguous()) or encoded.block_rows & (encoded.block_rows - 1):
            return None
        return how, scaled, ALL_BITS if shares else encoded.block_rows.bit_length() - 1

    def _words(self, first: int, last: int) -> torch.Tensor:
        """Those of rows, one row behind the other."""
        words, per_word = self._encoded.numbers, 4 if self._encoded.kind in BYTEWISE else 8
        if not self._is_transposed:
            return words[first:last]
        words_FW = _reused("words", (last - first, -(-self._encoded.shape[1] // per_word)), torch.int32)
        if self._encoded.kind == "awq":
            cpu_kernels.transpose_awq(_unsigned(words[:, first // 8 : last // 8]), _unsigned(words_FW))
        else:
            cpu_kernels.transpose(_unsigned(words[first:last].T), _unsigned(words_FW))
        return words_FW


def _kernel(encoded: Encoded, dtype: torch.dtype) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """What decodes it, and what that takes between the numbers and the first row."""
    rounds_to = DTYPES[torch.float32 if encoded.rounds_to == dtype else encoded.rounds_to]
    into, half_group = DTYPES[dtype], encoded.group // 2
    if (how := _vector_rounds(encoded, dtype)) is not None:
        return _vector_kernel(encoded, how)
    if encoded.kind == "fp4":
        pairs = np.empty((256, 256), f"u{2 * dtype.itemsize}")
        meanings, levels = _meanings_of_scales(encoded), level_table(E2M1, encoded.scales.device)
        cpu_kernels.fp4_pairs(rounds_to, into)(meanings.numpy(), levels.numpy(), pairs)
        return cpu_kernels.fp4(), (encoded.scales.view(torch.uint8).contiguous().numpy(), pairs, half_group)
    scales = scales_of(encoded).numpy()
    if encoded.levels is not None:
        return cpu_kernels.nf4(rounds_to, into), (scales, encoded.levels.numpy(), half_group)
    zeros, steps = _zeros(encoded)
    if encoded.order is not None:
        order = encoded.order.to(torch.int32).numpy()
        kernel = cpu_kernels.ordered(8 if encoded.kind in BYTEWISE else 4, rounds_to, into)
        return kernel, (scales, zeros.numpy(), steps, order)
    if encoded.kind in BYTEWISE:
        kernel = cpu_kernels.bytewise(BYTEWISE[encoded.kind], rounds_to, into)
        return kernel, (scales, zeros.numpy(), steps, encoded.group)
    return cpu_kernels.int4(rounds_to, into), (scales, zeros.numpy(), steps, half_group)


def _vector_rounds(encoded: Encoded, dtype: torch.dtype, *, to_multiply: bool = False) -> int | None:
    """Return what rounds, of `cpu_vectors.ROUNDS`; None where the matrix is not decoded by vectors.

    FP8 is where it is multiplied from registers.
    """
    names = [str(one).removeprefix("torch.") for one in (encoded.rounds_to, dtype)]
    rounds = tuple(name for name in dict.fromkeys(names) if name != "float32")
    fits = encoded.kind not in BYTEWISE or (to_multiply and encoded.kind == "fp8")
    fits &= encoded.order is None and encoded.group % (2 * cpu_instructions.BYTES) == 0
    fits &= encoded.shape[1] % encoded.group == 0 and dtype.itemsize == 2
    return cpu_vectors.ROUNDS.index(rounds) if fits and cpu_instructions.HAS_LOOK_UP else None


def _vector_kernel(encoded: Encoded, how: int) -> tuple[Callable[..., None], tuple[Any, ...]]:
    kind, scales, meanings = _vector_scales(encoded)
    zeros, steps = _zeros(encoded)
    arrays = (scales.numpy(), meanings.numpy(), zeros.numpy())
    return cpu_vectors.vectors(kind, how), (*arrays, steps, encoded.group // 2)


def _vector_scales(encoded: Encoded) -> tuple[int, torch.Tensor, torch.Tensor]:
    """The kind of the numbers, of `cpu_vectors.LEVELS`, their scales, and what these mean where they are bytes."""
    if encoded.kind == "fp4":
        scales = encoded.scales.view(torch.uint8).contiguous()
        return cpu_vectors.FP4_KIND, scales, _meanings_of_scales(encoded)
    kind = cpu_vectors.NF4_KIND if encoded.kind == "nf4" else _int4_kind(encoded)
    return kind, scales_of(encoded), NO_MEANINGS


def _int4_kind(encoded: Encoded) -> int:
    symmetric = isinstance(encoded.zeros, int) and encoded.zeros == 8
    return cpu_vectors.SYMMETRIC_KIND if symmetric else cpu_vectors.INT4_KIND


def _meanings_of_scales(encoded: Encoded) -> torch.Tensor:
    """What each byte means as the scale of a group, [256]."""
    if encoded.code is not None:
        return encoded.code
    return scales_in_float32(torch.arange(256, dtype=torch.uint8).view(1, 256).view(encoded.scales.dtype))[0]


def scales_of(encoded: Encoded) -> torch.Tensor:
    """[F, G], in fp32."""
    rows, scales = encoded.shape[0], encoded.scales
    if encoded.kind == "awq":
        return scales.to(torch.float32).T.contiguous()
    if encoded.code is not None and encoded.outer is not None:  # nested
        outer = encoded.outer.repeat_interleave(256)[: scales.numel()].view(scales.shape)
        return looked_up(scales, encoded.code) * outer + encoded.offset
    if encoded.block_rows > 1:
        return scales_in_float32(scales).repeat_interleave(encoded.block_rows, 0)[:rows].contiguous()
    return scales_in_float32(scales).contiguous()


def _zeros(encoded: Encoded) -> tuple[torch.Tensor, tuple[int, int]]:
    """[F, G] in fp32, or [1, 1], and the steps from one row or group to the next."""
    zeros, rows = encoded.zeros, encoded.shape[0]
    if isinstance(zeros, int):
        return torch.full((1, 1), float(zeros)), (0, 0)
    if encoded.kind == "awq":
        zeros = by_row(zeros)
    elif encoded.per_zero > 1:
        zeros = unpacked(transposed(zeros + encoded.added), 32 // encoded.per_zero).T[:rows]
    return zeros.to(torch.float32).contiguous(), (1, 1)


def _unsigned(words: torch.Tensor) -> Any:
    return words.numpy().view(np.uint32)


def _reused(name: str, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Memory of this thread, as large as was ever asked for."""
    nbytes = shape[0] * shape[1] * dtype.itemsize
    held: torch.Tensor | None = getattr(_memory, name, None)
    if held is None or held.nbytes < nbytes:
        held = torch.empty(nbytes, dtype=torch.uint8)
        setattr(_memory, name, held)
    return held[:nbytes].view(dtype).view(shape)
