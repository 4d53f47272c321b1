"""Settings of formats of small floats, with what a library decodes from them."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from support.stored_parts import find, read

from pipeline.formats import fp4
from pipeline.formats.dense import linear
from pipeline.formats.fp8 import Float8
from pipeline.formats.matrix import Format
from pipeline.formats.nf4 import Nf4

FLOATS: Mapping[str, Callable[[Mapping[str, Any]], Format]] = {
    "transformers FP8": lambda said: Float8("transformers", ("weight_scale_inv", "scale"), *said["block"]),
    "compressed-tensors FP8": lambda said: Float8(
        "compressed-tensors", ("weight_scale",), *said["block"], rounds_to_scales=True
    ),
    "ModelOpt FP8": lambda said: Float8("ModelOpt", ("weight_scale",), None, None),
    "gpt-oss MXFP4": lambda said: fp4.MXFP4_GPT_OSS,
    "compressed-tensors MXFP4": lambda said: fp4.MXFP4,
    "compressed-tensors NVFP4": lambda said: fp4.NVFP4,
    "ModelOpt NVFP4": lambda said: fp4.NVFP4_MODELOPT,
    "bitsandbytes nf4": lambda said: Nf4(**said),
}


@dataclass
class Case:
    """The parts of a matrix by their names behind that of the module, and what they stand for."""

    format: str
    shape: tuple[int, int]
    parts: Mapping[str, torch.Tensor]
    decoded: torch.Tensor
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a file holds of it."""
        return {**self.parts, "decoded": self.decoded}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def check(case: Case, folder: Path) -> None:
    """Raise AssertionError where it is decoded differently, whole or in slices, or multiplied by something else."""
    where, dtype = f"{case.format}, {case.shape}, {case.options}", case.decoded.dtype
    stored = find(folder / "parts.safetensors", FLOATS[case.format](case.options), case.shape, case.parts)
    matrix, step = read(stored), stored.row_step
    decoded = matrix.decoded(dtype)
    assert decoded.shape == case.shape == case.decoded.shape, where
    assert same_bits(decoded, case.decoded), f"{where}: {(decoded != case.decoded).sum()} differ"
    assert step is not None, where
    edges = [*range(0, stored.rows, step * max(1, stored.rows // step // 3)), stored.rows]
    slices = [stored.slice(first, last) for first, last in itertools.pairwise(edges)]
    assert same_bits(torch.cat([read(one).decoded(dtype) for one in slices]), decoded), f"{where}, in slices"
    again = stored.slice(edges[-2], stored.rows).slice(0, min(step, stored.rows - edges[-2]))
    assert same_bits(read(again).decoded(dtype), decoded[edges[-2] :][: again.rows]), f"{where}, of a slice"
    x, bias = torch.randn(3, case.shape[1]).to(dtype), torch.randn(case.shape[0])
    assert same_bits(matrix.apply(x, bias), linear(x, decoded, bias)), f"{where}: product"


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Any number that is none is like any other, and 0 like -0."""
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(12345.0), other.nan_to_num(12345.0))
