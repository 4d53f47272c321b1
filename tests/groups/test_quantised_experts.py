"""Experts in every format are what a dense feed-forward of the same matrices is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.quantised_models import FORMATS, Parts

from actors.core.message import GroupKey
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.devices.port import TWO_PLACES
from pipeline.errors import CheckpointError
from pipeline.formats.fp8 import StoredFloat8
from pipeline.formats.matrix import Weights
from pipeline.formats.tensors import TensorSpec, stored_dtype
from pipeline.groups.catalog import WeightCatalog
from pipeline.groups.groups import WeightGroup, find_groups
from pipeline.models.feed_forwards import Experts, FeedForward, Routing
from pipeline.models.json_object import JsonObject
from pipeline.models.quantizers import read_quantization

HIDDEN, INNER, EXPERTS = 64, 128, 2
LAYER, DENSE = "model.layers.0", "model.layers.1.mlp"
ROUTED = f"{LAYER}.mlp"
KIND = Experts(count=EXPERTS, chosen=1, routing=Routing(), expert=FeedForward(size=INNER))
SHAPES = KIND.expert.shapes(HIDDEN)


def found(
    folder: Path, tensors: Parts, config: object, specs: dict[GroupKey, list[TensorSpec]] | None = None
) -> tuple[WeightGroup, ...]:
    """The experts of a layer, and what else there are specs of."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    experts = {(0, f"expert.{index}"): [*KIND.expert_tensors(LAYER, index, SHAPES, ())] for index in range(EXPERTS)}
    quantization = read_quantization(JsonObject("config.json", {"quantization_config": config}), None)
    with open_checkpoint(folder) as checkpoint:
        return find_groups(experts | (specs or {}), checkpoint, quantization.format_of)


def decoded(group: WeightGroup) -> dict[str, torch.Tensor]:
    views = {}
    for tensor in group.tensors:
        raw = bytearray(tensor.file.read_bytes()[tensor.start :][: tensor.length])
        views[tensor.short] = torch.frombuffer(raw, dtype=stored_dtype(tensor.dtype)).view(tensor.shape)
    weights = Weights(views, {matrix.short: matrix.over(views) for matrix in group.matrices})
    return {short: matrix.decoded(torch.float32) for short, matrix in weights.matrices.items()}


def matrices(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {short: torch.randn(shape) for short, shape in SHAPES.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_an_expert_is_stored_as_a_dense_feed_forward_is(name: str, tmp_path: Path) -> None:
    quantised = FORMATS[name]
    tensors: Parts = {}
    meant = {}
    for short, weight in matrices().items():
        parts, meant[short] = quantised.store(weight)
        modules = (f"{ROUTED}.experts.0.{short}_proj", f"{ROUTED}.experts.1.{short}_proj", f"{DENSE}.{short}_proj")
        parts = quantised.beside(len(weight)) | parts
        tensors |= {f"{one}.{ending}": part.clone() for ending, part in parts.items() for one in modules}
    specs = [TensorSpec(short, f"{DENSE}.{short}_proj.weight", shape) for short, shape in SHAPES.items()]
    groups = found(tmp_path, tensors, quantised.config, {(1, "ffn"): specs})
    catalog = WeightCatalog(groups, TWO_PLACES, alignment_bytes=256)
    first, second, _ = groups
    assert catalog.laid_out(first.key) == catalog.laid_out(second.key)
    assert hash(catalog.laid_out(first.key)) == hash(catalog.laid_out(second.key))
    *experts, dense = (decoded(group) for group in groups)
    for expert in experts:
        assert [*expert] == ["gate", "up", "down"] == [*meant]
        for short, value in expert.items():
            assert value.equal(dense[short])
            torch.testing.assert_close(value, meant[short], atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", ["fp8 blocks", "ct fp8 rows", "ct mxfp4"])
def test_quantised_experts_may_lie_in_one_tensor(name: str, tmp_path: Path) -> None:
    """What ends the names is what does it with transformers' FP8Experts: gate_up_proj_scale_inv."""
    stored = [{short: FORMATS[name].store(weight) for short, weight in matrices(seed).items()} for seed in (0, 1)]
    tensors: Parts = {}
    for ending in stored[0]["down"][0]:
        gate_up = [torch.cat([one["gate"][0][ending], one["up"][0][ending]]) for one in stored]
        called = ending.removeprefix("weight")
        tensors[f"{ROUTED}.experts.gate_up_proj{called}"] = torch.stack(gate_up)
        tensors[f"{ROUTED}.experts.down_proj{called}"] = torch.stack([one["down"][0][ending] for one in stored])
    for group, meant in zip(found(tmp_path, tensors, FORMATS[name].config), stored, strict=True):
        for short, value in decoded(group).items():
            torch.testing.assert_close(value, meant[short][1], atol=2e-2, rtol=0)


def test_gate_and_up_that_share_a_block_are_refused(tmp_path: Path) -> None:
    """As they would in a tensor of 2 x 64 rows, whose blocks have 128."""
    kind = replace(KIND, expert=FeedForward(size=64))
    specs = [*kind.expert_tensors(LAYER, 0, kind.expert.shapes(HIDDEN), ())]
    tensors = {}
    for name, rows, columns in (("gate_up_proj", 128, 64), ("down_proj", 64, 64)):
        tensors[f"{ROUTED}.experts.{name}"] = torch.zeros(2, rows, columns).to(torch.float8_e4m3fn)
        tensors[f"{ROUTED}.experts.{name}_scale_inv"] = torch.ones(2, 1, 1)
    with pytest.raises(CheckpointError, match=r"experts.gate_up_proj': need gate and up .* multiple of 128 .* have 64"):
        found(tmp_path, tensors, FORMATS["fp8 blocks"].config, {(0, f"expert.{one}"): specs for one in range(EXPERTS)})


@pytest.mark.parametrize("name", FORMATS)
def test_experts_that_were_left_as_they_are_are_read_so(name: str, tmp_path: Path) -> None:
    """As bitsandbytes in transformers leaves them, whose config.json does not say it."""
    weights = matrices()
    modules = [(f"{ROUTED}.experts.{index}.{short}_proj.weight", short) for index in range(EXPERTS) for short in SHAPES]
    for group in found(tmp_path, {one: weights[short].clone() for one, short in modules}, FORMATS[name].config):
        assert all(value.equal(weights[short]) for short, value in decoded(group).items())


def test_experts_that_are_decoded_otherwise_are_not_laid_out_alike(tmp_path: Path) -> None:
    """Though their tensors are of the same dtypes and shapes, at the same places of the slot."""
    quantised, tensors = FORMATS["ct fp8 rows"], Parts()
    for short, weight in matrices().items():
        parts, _ = quantised.store(weight)
        tensors |= {
            f"{ROUTED}.experts.{index}.{short}_proj.{ending}": part.clone()
            for ending, part in parts.items()
            for index in range(EXPERTS)
        }
    first, second = found(tmp_path, tensors, quantised.config)
    one, *others = second.matrices
    assert isinstance(one, StoredFloat8)
    otherwise = StoredFloat8(replace(one.format, rounds_to_scales=not one.format.rounds_to_scales), one.tensors)
    catalogs = [
        WeightCatalog((first, replace(second, matrices=matrices_of)), TWO_PLACES, alignment_bytes=256)
        for matrices_of in ((one, *others), (otherwise, *others))
    ]
    alike = [catalog.laid_out(first.key) == catalog.laid_out(second.key) for catalog in catalogs]
    assert alike == [True, False]
