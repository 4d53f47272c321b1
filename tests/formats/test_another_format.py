"""What a format of several tensors needs is in its own classes: layout, slots, plan and products follow from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import PROMPT, save

from pipeline import Model
from pipeline.engine.runtime import Runtime
from pipeline.formats.dense import Dense, DenseMatrix
from pipeline.formats.matrix import Format
from pipeline.formats.tensors import TensorRange, TensorSpec


class StoredScaled:
    """Values, and a scale for each row. Powers of two, so that what is decoded has the bits of the dense matrix."""

    row_step = 16

    def __init__(self, tensors: tuple[TensorRange, ...]) -> None:
        self.tensors, (self.rows, self.columns), self.dtype = tensors, tensors[0].shape, torch.float32
        self.short = tensors[0].short

    def slice(self, first: int, last: int) -> "StoredScaled":
        assert first % self.row_step == 0
        return StoredScaled(tuple(tensor.rows(first, last) for tensor in self.tensors))

    def scratch_bytes(self, dtype: torch.dtype) -> int:
        return self.rows * self.tensors[0].shape[1] * dtype.itemsize

    def over(self, views: Mapping[str, torch.Tensor]) -> DenseMatrix:
        return DenseMatrix(views[self.short].float() * views[f"{self.short}.scale"].float())


class Scaled:
    name = "scaled rows"

    def stored_as(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        values = spec.part("", "weight_values", spec.shape, ("F32",))
        rows = spec.shape[0]
        scales = spec.part("scale", "weight_scale", (rows, 1), ("F8_E8M0",), shapes=((rows,), (rows, 1)))
        return values, scales, spec.part("about", "about", (), ("U8",), is_header=True)

    def stored(self, spec: TensorSpec, tensors: tuple[TensorRange, ...]) -> StoredScaled:
        values, scales, about = tensors
        assert about.content == b"scaled"
        return StoredScaled((values, scales))


def format_of(name: str) -> Format:
    """All matrices but the embedding are stored so."""
    return Dense() if name == "model.embed_tokens.weight" else Scaled()


def write_scaled(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in [*tensors.items()]:
        if tensor.ndim == 2 and "embed_tokens" not in name:
            scales = 2.0 ** (torch.arange(len(tensor)) % 5 - 2.0).unsqueeze(1)
            tensors[f"{name}_values"] = tensors.pop(name) / scales
            tensors[f"{name}_scale"] = scales.to(torch.float8_e8m0fnu)
            tensors[name.replace("weight", "about")] = torch.tensor([*b"scaled"], dtype=torch.uint8)
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
    monkeypatch.setattr(
        "pipeline.models.quantizers.quantization.Quantization.format_of", lambda _, name: format_of(name)
    )
    *scaled, runtime = await answers(tmp_path, device="cpu-copy", residency=False)
    assert scaled == dense
    scratch = [
        one.nbytes for one in runtime.plan.holdings if one.holder == "activations: weights that are cast or decoded"
    ]
    assert scratch == [179 * 48 * 4], "of the largest matrix or slice, which is one of the head"
