"""A tensor as a model needs it, and as a file holds it."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ITEM_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""How many bits an item has, by dtype as safetensors files spell it."""
WEIGHT_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""In which weights may be stored as they are, as safetensors files and as torch spell them."""
PART_DTYPES = {
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
"""In which parts of quantised weights may be stored beside these."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """The place of a tensor in another one, which holds those of `count` experts.

    It is in the item `index`, whose rows are shared out evenly to `parts` tensors, of which this is number `part`.
    Matrices that are `transposed` there are so unless they are quantised.
    """

    name: str
    count: int
    index: int
    part: int
    parts: int
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: its short name in the code, its name in the checkpoint, the shape it must have, and in which dtypes.

    Where it may lie under one of several names, `names` has them all, and the first that is there counts. Where it may
    have one of several shapes, `shapes` has them all. Where it may be stored together with others in its place,
    `stacked` says how. A header, as `is_header` says, is read when the model is opened and need not travel with its
    group; where its shape is () it may have any. Numbers that `are_plain` are no matrix, though they have two axes. The
    rows of a block diagonal matrix are cut into those of so many `diagonal_blocks`, matrices called "short.0" and on.
    """

    short: str
    name: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = (*WEIGHT_DTYPES,)
    shapes: tuple[tuple[int, ...], ...] = ()
    is_header: bool = False
    stacked: Stacked | None = None
    are_plain: bool = False
    diagonal_blocks: int = 1

    def part(
        self,
        short: str,
        ending: str,
        shape: tuple[int, ...],
        dtypes: tuple[str, ...],
        *,
        endings: tuple[str, ...] = (),
        shapes: tuple[tuple[int, ...], ...] = (),
        is_header: bool = False,
    ) -> "TensorSpec":
        """One of the tensors that this matrix is stored as, with `ending` in place of the "weight" that ends its name.

        Where the name has no such end, as that of a stack, the ending is used without such a beginning. Inside the
        group it is called `short` behind the name of the matrix ("q.scale"), or like the matrix with "".
        """
        called, stem = f"{self.short}.{short}" if short else self.short, self.name.removesuffix("weight")
        if stem == self.name:
            ending, endings = ending.removeprefix("weight"), tuple(one.removeprefix("weight") for one in endings)
        names = tuple(stem + ending for ending in endings)
        return TensorSpec(called, stem + ending, shape, names, dtypes, shapes, is_header)

    def each(self, count: int) -> "TensorSpec":
        """The tensor that holds so many of these."""
        shapes = tuple((count, *shape) for shape in self.shapes)
        return replace(self, shape=(count, *self.shape), shapes=shapes)

    @property
    def is_matrix(self) -> bool:
        """Whether it takes part in products: norms and biases have one axis."""
        return len(self.shape) == 2 and not self.are_plain


@dataclass(frozen=True, slots=True)
class TensorRange:
    """The bytes of one tensor, or of some of its rows, in one file; `short` is its name inside the group.

    `content` holds them where it is a header, which is read when the model is opened. It is empty where there are no
    files, but only a plan of them: a format assumes what it must.
    """

    short: str
    name: str
    file: Path
    start: int
    length: int
    shape: tuple[int, ...]
    dtype: str
    content: bytes = b""

    @property
    def is_odd(self) -> bool:
        """Whether its file begins it at no multiple of an item's size, as headers do that are not padded to 8 bytes.

        In memory an item must begin at such a multiple.
        """
        return self.start % (ITEM_BITS[self.dtype] // 8) != 0

    def rows(self, first: int, last: int) -> "TensorRange":
        """Rows [first, last) of it, which lie one behind the other."""
        row_bytes, shape = self.length // self.shape[0], (last - first, *self.shape[1:])
        return replace(self, start=self.start + first * row_bytes, length=shape[0] * row_bytes, shape=shape)

    def item(self, index: int) -> "TensorRange":
        """One of those that lie along its first axis."""
        return replace(self.rows(index, index + 1), shape=self.shape[1:])


@functools.cache
def stored_dtype(name: str) -> "torch.dtype":
    """The dtype that a safetensors file calls so, of those in which weights or parts of them may be stored."""
    import torch  # here, so that what only describes a model needs no torch

    found: torch.dtype = getattr(torch, (WEIGHT_DTYPES | PART_DTYPES)[name])
    return found


def stored_name(dtype: str) -> str:
    """How a safetensors file spells one of these dtypes, which torch calls so."""
    return next(name for name, called in WEIGHT_DTYPES.items() if called == dtype)
