"""What a format of several tensors needs is in its own classes: layout, slots, plan and products follow from them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import PROMPT, save

from pipeline import Model
from pipeline.formats.dense import Dense, DenseMatrix
from pipeline.formats.tensors import TensorRange, TensorSpec
from pipeline.generation.build import Runtime


class Scaled:
    """Values, and a scale for each row. Powers of two, so that what is decoded has the bits of the dense matrix."""

    def __init__(self, tensors: tuple[TensorRange, ...]) -> None:
        self.tensors, self.rows, self.dtype = tensors, tensors[0].shape[0], torch.float32
        self.short = tensors[0].short.removesuffix(".values")

    def slice(self, first: int, last: int) -> "Scaled":
        return Scaled(tuple(Dense((tensor,)).slice(first, last).tensors[0] for tensor in self.tensors))

    def scratch_bytes(self, dtype: torch.dtype) -> int:
        return self.rows * self.tensors[0].shape[1] * dtype.itemsize

    def over(self, views: Mapping[str, torch.Tensor]) -> DenseMatrix:
        return DenseMatrix(views[f"{self.short}.values"] * views[f"{self.short}.scales"])


class Chosen:
    """All matrices but the embedding are stored so."""

    def __new__(cls, tensors: tuple[TensorRange, ...]) -> Any:
        return Dense(tensors) if len(tensors) == 1 else Scaled(tensors)

    @staticmethod
    def stored_as(spec: TensorSpec) -> tuple[TensorSpec, ...]:
        if spec.short == "embed":
            return (spec,)
        values = replace(spec, short=f"{spec.short}.values", name=spec.name.replace(".weight", ".values"))
        shape = (spec.shape[0], 1)
        scales = replace(
            values, short=f"{spec.short}.scales", name=spec.name.replace(".weight", ".scales"), shape=shape
        )
        return (values, scales)


def write_scaled(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in [*tensors.items()]:
        if tensor.ndim == 2 and "embed_tokens" not in name:
            scales = 2.0 ** (torch.arange(len(tensor)) % 5 - 2.0).unsqueeze(1)
            tensors[name.replace(".weight", ".values")] = tensors.pop(name) / scales
            tensors[name.replace(".weight", ".scales")] = scales
    save_file(tensors, folder / "model.safetensors")


async def answers(folder: Path, **settings: Any) -> tuple[list[int], Any, Runtime]:
    async with Model.open(folder, **settings) as model:
        output = await model.generate(PROMPT, max_new_tokens=8, ignore_eos=True, logprobs=2)
        return [*output.token_ids], output.logprobs, model.runtime


async def test_scaled_rows_say_what_the_dense_matrices_say_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("qwen3_biases", tmp_path)
    *dense, _ = await answers(tmp_path, device="cpu-copy", residency=False)
    write_scaled(tmp_path)
    monkeypatch.setattr("pipeline.groups.groups.Dense", Chosen)
    *scaled, runtime = await answers(tmp_path, device="cpu-copy", residency=False)
    assert scaled == dense
    scratch = [one.nbytes for one in runtime.plan.holdings if one.holder == "activations: weights that are cast"]
    assert scratch == [171 * 48 * 4], "of the largest matrix or slice, which is one of the head"
