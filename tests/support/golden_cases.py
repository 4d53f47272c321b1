"""What libraries decode from random settings of formats, compared with what the project decodes, and kept in files."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.stored_parts import find, read

from pipeline.formats import cpu_choice, cpu_compiled
from pipeline.formats.dense import linear
from pipeline.formats.matrix import Format

MOST_BYTES = 3000
"""Of a setting that is kept."""


@dataclass
class Case:
    """The parts of a matrix by their names behind that of the module, and what a library makes of them."""

    format: str
    shape: tuple[int, int]
    parts: dict[str, torch.Tensor]
    decoded: torch.Tensor
    options: Mapping[str, Any] = field(default_factory=dict)


def check(case: Case, stored_in: Format, folder: Path, way: str = "torch") -> None:
    """Raise AssertionError where it is decoded differently, whole or in slices, or multiplied by something else."""
    with decoding_by(way):
        _check(case, stored_in, folder)


@contextlib.contextmanager
def decoding_by(way: str) -> Iterator[None]:
    """Matrices on the CPU are decoded by "torch" or "numba" within, whatever is faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_choice, "_chosen", {})
        if way == "torch":
            patch.setattr(cpu_compiled, "kernels", lambda: None)
        else:
            patch.setattr(cpu_choice, "_seconds", lambda decode, rows: 1 if hasattr(decode, "__self__") else 2)
        yield


def _check(case: Case, stored_in: Format, folder: Path) -> None:
    where, dtype = f"{case.format}, {case.shape}, {case.options}", case.decoded.dtype
    stored = find(folder / "parts.safetensors", stored_in, case.shape, case.parts)
    matrix, step = read(stored), stored.row_step
    decoded = matrix.decoded(dtype)
    assert decoded.shape == case.shape == case.decoded.shape, where
    assert same_bits(decoded, case.decoded), f"{where}: {(decoded != case.decoded).sum()} differ"
    for other in (torch.float32, torch.bfloat16, torch.float16):
        assert same_bits(matrix.decoded(other), decoded.to(other)), f"{where}, as {other}"
    if step is not None:
        edges = [*range(0, stored.rows, step * max(1, stored.rows // step // 3)), stored.rows]
        slices = [stored.slice(first, last) for first, last in pairwise(edges)]
        assert same_bits(torch.cat([read(one).decoded(dtype) for one in slices]), decoded), f"{where}, in slices"
        again = slices[-1].slice(0, min(step, slices[-1].rows))
        assert same_bits(read(again).decoded(dtype), decoded[edges[-2] :][: again.rows]), f"{where}, of a slice"
    x, bias = torch.randn(3, case.shape[1]).to(dtype), torch.randn(case.shape[0])
    assert same_bits(matrix.apply(x, bias), linear(x, decoded, bias)), f"{where}: product"


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Any number that is none is like any other, and 0 like -0."""
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(12345.0), other.nan_to_num(12345.0))


def kept_cases(file: Path) -> list[Case]:
    """Those that `run` has written."""
    with safe_open(file, "pt") as held:
        said = json.loads(held.metadata()["cases"])
    cases = [Case(one["format"], tuple(one["shape"]), {}, torch.empty(0), one["options"]) for one in said]
    for name, tensor in load_file(file).items():
        index, _, part = name.partition(".")
        cases[int(index)].parts[part] = tensor
    return [replace(case, decoded=case.parts.pop("decoded")) for case in cases]


def run(
    argument: str, makers: Sequence[Callable[[], Case]], formats: Mapping[str, Callable[..., Format]], file: Path
) -> None:
    """Compare as many settings of each maker as `argument` says, or with "--write" keep a few in `file`."""
    torch.manual_seed(1)
    if argument == "--write":
        cases = [case for make in makers for case in _small(make, 5)]
        tensors = {f"{index}.{name}": part for index, case in enumerate(cases) for name, part in _tensors(case).items()}
        said = [{"format": case.format, "shape": case.shape, "options": case.options} for case in cases]
        save_file({name: part.contiguous() for name, part in tensors.items()}, file, {"cases": json.dumps(said)})
        print(f"{len(cases)} settings, {file.stat().st_size} bytes")
        return
    with tempfile.TemporaryDirectory() as folder:
        for make in makers:
            cases = [make() for _ in range(int(argument))]
            for case in cases:
                for way in ("torch", "numba"):
                    check(case, formats[case.format](**case.options), Path(folder), way)
            print(f"{cases[0].format}: {len(cases)} settings, {len({case.shape for case in cases})} shapes: equal")


def _tensors(case: Case) -> dict[str, torch.Tensor]:
    return {**case.parts, "decoded": case.decoded}


def _small(make: Callable[[], Case], count: int) -> list[Case]:
    """Of many settings, the first that differ in their options and are small, so that the file is."""
    found: dict[str, Case] = {}
    for case in (make() for _ in range(500)):
        said = f"{case.options} {case.decoded.dtype} {[part.dtype for part in case.parts.values()]}"
        nbytes = sum(tensor.nbytes for tensor in _tensors(case).values())
        if nbytes <= MOST_BYTES and case.decoded.numel() > 200 and min(case.shape) > 4:
            found.setdefault(said, case)
    return [*found.values()][:count]
