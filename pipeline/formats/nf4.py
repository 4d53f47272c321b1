"""Matrices of bitsandbytes' nf4: 16 levels of a normal distribution, two in a byte, and the high one first.

All numbers of a matrix lie in one line. A block of them shares its greatest magnitude (absmax), which lies as fp32, or,
with double quantisation, as a byte: a number of a table times the scale of 256 blocks, plus an offset. Blocks heed no
rows, and the last may be partial. Values are multiplied in fp32, and rounded to the dtype of the quant state.
The kernel of bitsandbytes 0.50.2 for AVX-512 takes wrong magnitudes where D is a multiple of 16 and not of the block
(findings/nf4_partial_blocks.sh). What is decoded here is what its other kernels decode.
Letters in names: T tokens of this pass, D columns, F rows of a matrix.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from pipeline.errors import CheckpointError
from pipeline.formats.decoding import decoded_matrix, decoded_product, decoding_bytes
from pipeline.formats.encoded import Encoded, as_words
from pipeline.formats.lookup import NF4, level_table, looked_up, nibble_table
from pipeline.formats.tensors import TensorRange, TensorSpec
from pipeline.system.small_files import parse_object

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
SCALES_PER_OUTER_BLOCK = 256
"""Of double quantisation."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Nf4:
    """See `Format`."""

    is_double: bool

    @property
    def name(self) -> str:
        """The name of the format in messages."""
        return "bitsandbytes nf4" + (", double quantisation" if self.is_double else "")

    def stored_as(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The pairs of numbers, magnitudes of blocks, and what is needed to decode them; how many, the state says."""
        count = math.prod(spec.shape)
        sizes = [(-(-count // size),) for size in BLOCK_SIZES]
        outer = [(-(-size // SCALES_PER_OUTER_BLOCK),) for (size,) in sizes]
        magnitudes = ("U8",) if self.is_double else ("F32",)
        parts = [
            spec.part("", "weight", (-(-count // 2), 1), ("U8",)),
            spec.part("absmax", "weight.absmax", sizes[1], magnitudes, shapes=(*sizes,)),
        ]
        if self.is_double:
            parts.append(spec.part("outer", "weight.nested_absmax", outer[1], ("F32",), shapes=(*outer,)))
            parts.append(spec.part("table", "weight.nested_quant_map", (256,), ("F32",)))
        parts.append(spec.part("levels", "weight.quant_map", (16,), ("F32",), is_header=True))
        parts.append(spec.part("state", "weight.quant_state.bitsandbytes__nf4", (), ("U8",), is_header=True))
        return tuple(parts)

    def stored(self, spec: TensorSpec, tensors: tuple[TensorRange, ...]) -> "StoredNf4":
        """The matrix over what was found. Raises CheckpointError where its state contradicts that."""
        *parts, _, header = tensors
        state = _state(header, spec.shape, self.is_double)
        blocks = -(-math.prod(spec.shape) // state.block)
        needed = [blocks, -(-blocks // SCALES_PER_OUTER_BLOCK)]
        for part, need in zip(parts[1:3], needed, strict=False):
            if part.shape != (need,):
                raise CheckpointError(
                    f"{part.file}: tensor {part.name!r}: need shape [{need}] for blocks of {state.block}, as "
                    f"{header.name!r} says, have {[*part.shape]}; fetch the file again"
                )
        return StoredNf4(state, spec.shape, tuple(parts))


@dataclass(frozen=True, slots=True)
class _State:
    """What the JSON of a matrix says of it."""

    block: int
    dtype: torch.dtype
    offset: float


def _state(header: TensorRange, shape: tuple[int, ...], is_double: bool) -> _State:
    """Raises CheckpointError where it is no JSON, or not that of a matrix of this shape."""
    if not header.content:
        return _State(BLOCK_SIZES[1], torch.float32, 0.0)
    what = f"{header.file}: tensor {header.name!r}"
    state = parse_object(header.content, f"{what}: the quant state")
    needed = {
        "quant_type": ("nf4",),
        "shape": ([*shape],),
        "blocksize": BLOCK_SIZES,
        "dtype": tuple(DTYPES),
        "nested_blocksize": (SCALES_PER_OUTER_BLOCK,) if is_double else (None,),
        "nested_dtype": ("float32",) if is_double else (None,),
    }
    wrong = {key: " or ".join(map(str, values)) for key, values in needed.items() if state.get(key) not in values}
    offset: Any = state.get("nested_offset") if is_double else 0.0
    if not isinstance(offset, int | float) or not abs(offset) <= torch.finfo(torch.float32).max:
        wrong["nested_offset"] = "a number of float32"
    for key, need in wrong.items():
        raise CheckpointError(
            f"{what}: need {key} {need}, have {state.get(key)}; "
            "fetch the file again, or the config.json of these weights"
        )
    return _State(int(state["blocksize"]), DTYPES[state["dtype"]], offset)


class StoredNf4:
    """See `StoredMatrix`."""

    def __init__(self, state: _State, shape: tuple[int, ...], tensors: tuple[TensorRange, ...]) -> None:
        self.tensors, self._state, self._shape = tensors, state, shape
        self.form = state
        self.short, self.dtype, (self.rows, self.columns) = tensors[0].short, state.dtype, shape
        unit = state.block * (SCALES_PER_OUTER_BLOCK if len(tensors) > 2 else 1)
        self.row_step = unit // math.gcd(unit, self.columns)

    def slice(self, first: int, last: int) -> "StoredNf4":
        """Rows [first, last), which begin a block, and one of the outer blocks where there are any."""
        pairs, magnitudes, *double = self.tensors
        begin, end, block = first * self.columns, last * self.columns, self._state.block
        parts = [pairs.rows(begin // 2, -(-end // 2)), magnitudes.rows(begin // block, -(-end // block))]
        if double:
            outer, table = double
            block *= SCALES_PER_OUTER_BLOCK
            parts += [outer.rows(begin // block, -(-end // block)), table]
        return StoredNf4(self._state, (last - first, self.columns), tuple(parts))

    def scratch_bytes(self, dtype: torch.dtype) -> int:
        """That of decoding a block of rows."""
        return decoding_bytes((self.rows, self.columns))

    def over(self, views: Mapping[str, torch.Tensor]) -> "Nf4Matrix":
        """What multiplies, over the tensors of its group by short name."""
        pairs, magnitudes, *double = (views[tensor.short] for tensor in self.tensors)
        return Nf4Matrix(self._state, (self.rows, self.columns), pairs.flatten(), magnitudes, (*double,))


@dataclass(frozen=True, slots=True)
class Nf4Matrix:
    """See `Matrix`. With double quantisation, `double` has the scales of the magnitudes, and what their bytes mean."""

    state: _State
    shape: tuple[int, int]
    pairs: torch.Tensor
    magnitudes: torch.Tensor
    double: tuple[torch.Tensor, ...]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.pairs.device

    def apply(self, x_TD: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
        """`x_TD` times the transposed matrix, plus bias: [T, F] in the dtype of `x_TD`."""
        return decoded_product(self, x_TD, bias_F)

    def decoded(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix itself, [F, D]."""
        return decoded_matrix(self, dtype)

    def encoded(self) -> Encoded | None:
        """See `DecodableRows`; the kernels want whole blocks in a row."""
        (rows, columns), block = self.shape, self.state.block
        if columns % block:
            return None
        outer, code = self.double or (None, None)
        return Encoded(
            "nf4",
            self.shape,
            as_words(self.pairs).view(rows, -1),
            self.magnitudes.view(rows, -1),
            block,
            self.state.dtype,
            scaled="nested" if self.double else "",
            levels=level_table(NF4, self.device),
            outer=outer,
            code=code,
            offset=self.state.offset,
        )

    def decoded_rows(self, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [first, last), as a new tensor: all blocks that they are in, and of these their numbers."""
        columns, block = self.shape[1], self.state.block
        begin, end = first * columns, last * columns
        first_block, last_block = begin // block, -(-end // block)
        pairs = self.pairs[first_block * block // 2 : last_block * block // 2]
        lacking = (last_block - first_block) * block // 2 - len(pairs)  # the last block of a matrix may be partial
        pairs = functional.pad(pairs, (0, lacking)).view(-1, block // 2)
        values = looked_up(pairs, nibble_table(NF4, self.device, high_first=True))
        values.mul_(self._magnitudes(first_block, last_block)[:, None])
        decoded = values.flatten()[begin - first_block * block : end - first_block * block]
        return decoded.view(last - first, columns).to(self.state.dtype).to(dtype)

    def _magnitudes(self, first: int, last: int) -> torch.Tensor:
        """Those of blocks [first, last), in fp32."""
        if not self.double:
            return self.magnitudes[first:last]
        scales, table = self.double
        scales = scales.index_select(0, torch.arange(first, last, device=self.device) // SCALES_PER_OUTER_BLOCK)
        return looked_up(self.magnitudes[None, first:last], table)[0] * scales + self.state.offset
