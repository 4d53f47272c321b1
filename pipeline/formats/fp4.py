"""Matrices of 4 bit floats (e2m1), two in a byte, the low one first: MXFP4 and NVFP4.

* MXFP4: a group of 32 columns shares a power of two (e8m0). gpt-oss has it as blocks and scales, compressed-tensors as
  "mxfp4-pack-quantized", and DeepSeek-V4 has its experts so. Every value is exact in bf16.
* NVFP4: a group of 16 columns shares a scale in e4m3, and the matrix another one in fp32. compressed-tensors
  ("nvfp4-pack-quantized") divides by that, ModelOpt multiplies; both multiply in fp32, and compressed-tensors rounds
  the result to bf16.
The byte 255 of e8m0 is no number, as the standard says; compressed-tensors reads it as infinite, transformers as 2^128.
Letters in names: T tokens of this pass, D columns, F rows of a matrix, G groups of columns that share a scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.errors import ConfigError
from pipeline.formats.decoding import decoded_matrix, decoded_product, decoding_bytes, scale_columns
from pipeline.formats.encoded import Encoded, as_words
from pipeline.formats.lookup import E2M1, byte_table, looked_up, nibble_table, scales_in_float32
from pipeline.formats.tensors import TensorRange, TensorSpec


@dataclass(frozen=True, slots=True)
class Float4:
    """See `Format`. `whole` says what the scale of the whole matrix does, where there is one.

    `values`, `scales` and `whole_scale` end the names of the tensors, behind that of the module.
    """

    name: str
    group: int
    values: str
    scales: str
    scale_dtypes: tuple[str, ...]
    whole: Literal["divides", "multiplies"] | None = None
    whole_scale: str = ""
    rounds_to: torch.dtype = torch.float32
    """What is decoded is rounded to this dtype before it is cast."""
    in_blocks: bool = False
    """Whether its writer gives the groups of a row an axis of their own; both are read."""
    value_dtype: str = "U8"
    """What its writer calls a pair of values."""

    def stored_as(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The pairs of values, their scales, and that of the matrix. Raises ConfigError for a part of a group."""
        rows, columns = spec.shape
        if columns % self.group:
            raise ConfigError(
                f"{spec.name}: {self.name} needs a multiple of {self.group} columns, have {columns}; "
                "name the module under what is not quantised in quantization_config, or use another checkpoint"
            )
        groups = columns // self.group
        flat, blocks = (rows, columns // 2), (rows, groups, self.group // 2)
        parts = (
            spec.part("", self.values, blocks if self.in_blocks else flat, (self.value_dtype,), shapes=(flat, blocks)),
            spec.part("scale", self.scales, (rows, groups), self.scale_dtypes),
        )
        if self.whole is None:
            return parts
        return *parts, spec.part("whole", self.whole_scale, (1,), ("F32",), shapes=((1,), ()))

    def stored(self, spec: TensorSpec, tensors: tuple[TensorRange, ...]) -> "StoredFloat4":
        """The matrix over what was found."""
        return StoredFloat4(self, tensors)


MXFP4_GPT_OSS = Float4("gpt-oss MXFP4", 32, "_blocks", "_scales", ("U8", "F8_E8M0"), in_blocks=True)
MXFP4 = Float4("compressed-tensors MXFP4", 32, "weight_packed", "weight_scale", ("U8", "F8_E8M0"))
MXFP4_DEEPSEEK = Float4("DeepSeek MXFP4", 32, "weight", "scale", ("F8_E8M0", "U8"), value_dtype="I8")
NVFP4 = Float4(
    "compressed-tensors NVFP4",
    16,
    "weight_packed",
    "weight_scale",
    ("F8_E4M3",),
    "divides",
    "weight_global_scale",
    torch.bfloat16,
)
NVFP4_MODELOPT = Float4("ModelOpt NVFP4", 16, "weight", "weight_scale", ("F8_E4M3",), "multiplies", "weight_scale_2")


class StoredFloat4:
    """See `StoredMatrix`."""

    dtype = torch.bfloat16
    row_step = 1

    def __init__(self, stored_in: Float4, tensors: tuple[TensorRange, ...]) -> None:
        self.tensors, self._format = tensors, stored_in
        self.form = stored_in
        self.short, self.rows = tensors[0].short, tensors[0].shape[0]
        self.columns = tensors[1].shape[1] * stored_in.group

    def slice(self, first: int, last: int) -> "StoredFloat4":
        """Rows [first, last), their scales, and that of the matrix."""
        values, scales, *whole = self.tensors
        return StoredFloat4(self._format, (values.rows(first, last), scales.rows(first, last), *whole))

    def scratch_bytes(self, dtype: torch.dtype) -> int:
        """That of decoding a block of rows."""
        return decoding_bytes((self.rows, self.columns))

    def over(self, views: Mapping[str, torch.Tensor]) -> "Float4Matrix":
        """What multiplies, over the tensors of its group by short name."""
        scales, whole = views[f"{self.short}.scale"], views.get(f"{self.short}.whole")
        return Float4Matrix(self._format, views[self.short].flatten(1), scales, whole)


@dataclass(frozen=True, slots=True)
class Float4Matrix:
    """See `Matrix`. Its pairs are [F, D / 2]."""

    format: Float4
    pairs: torch.Tensor
    scales_FG: torch.Tensor
    whole_scale: torch.Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """F and D."""
        rows, pairs = self.pairs.shape
        return rows, 2 * pairs

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

    def encoded(self) -> Encoded:
        """See `DecodableRows`. Times a power of two, values are exact in bfloat16."""
        words, group, whole = as_words(self.pairs), self.format.group, self.whole_scale
        if whole is None:
            return Encoded("fp4", self.shape, words, self.scales_FG, group, torch.bfloat16, scaled="exponent")
        code = byte_table(torch.float8_e4m3fn, self.device)
        code, rounds_to = code / whole if self.format.whole == "divides" else code * whole, self.format.rounds_to
        return Encoded("fp4", self.shape, words, self.scales_FG, group, rounds_to, scaled="coded", code=code)

    def decoded_rows(self, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [first, last), as a new tensor."""
        scales_FG = scales_in_float32(self.scales_FG[first:last])
        if self.whole_scale is not None:
            whole = self.whole_scale
            scales_FG = scales_FG / whole if self.format.whole == "divides" else scales_FG * whole
        values_FD = looked_up(self.pairs[first:last], nibble_table(E2M1, self.device))
        return scale_columns(values_FD, scales_FG, self.format.group).to(self.format.rounds_to).to(dtype)
