"""Experts are weight groups beside the others, however a checkpoint stores them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import randomised
from transformers import Qwen3MoeConfig

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.errors import CheckpointError
from pipeline.groups.groups import WeightGroup, WeightGroups, plan_groups
from pipeline.models.model_config import ModelConfig, read_config
from pipeline.models.specs import expert_specs, group_specs

VOCABULARY, HIDDEN, INNER, EXPERTS = 600, 32, 80, 6
ROUTED = (0, 2)
"""The layers that have experts; that between them has none."""


@dataclass(frozen=True)
class Tiny:
    """A model of transformers, saved: where, and its tensors by name."""

    folder: Path
    config: ModelConfig
    tensors: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("experts")
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=48,
        moe_intermediate_size=INNER,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        mlp_only_layers=[1],
        max_position_embeddings=64,
    )
    randomised(config, seed=1).save_pretrained(folder)
    return Tiny(folder, read_config(folder), load_file(folder / "model.safetensors"))


def planned(config: ModelConfig, folder: Path) -> WeightGroups:
    with open_checkpoint(folder) as checkpoint:
        return plan_groups(group_specs(config) | expert_specs(config), checkpoint)


def changed(tiny: Tiny, folder: Path, changes: dict[str, torch.Tensor | None]) -> Path:
    """The folder of the same model, in which these tensors are others, or left out."""
    tensors = {name: value for name, value in {**tiny.tensors, **changes}.items() if value is not None}
    save_file(tensors, folder / "model.safetensors")
    return folder


def decoded(group: WeightGroup) -> Iterator[tuple[str, torch.Tensor]]:
    """The matrices of a group by short name, as they are read and multiplied by."""
    views = {}
    for tensor in group.tensors:
        raw = torch.frombuffer(bytearray(tensor.file.read_bytes()[tensor.start :][: tensor.length]), dtype=torch.uint8)
        views[tensor.short] = raw.view(torch.float32).view(tensor.shape)
    for matrix in group.matrices:
        yield matrix.short, matrix.over(views).decoded(torch.float32)


def test_each_expert_is_a_group_beside_the_others(tiny: Tiny) -> None:
    groups = planned(tiny.config, tiny.folder)
    assert [group.key for group in groups.experts] == [(layer, f"expert.{i}") for layer in ROUTED for i in range(6)]
    for group in groups.experts:
        name = f"model.layers.{group.layer}.mlp.experts.{group.name.removeprefix('expert.')}"
        assert [short for short, _ in decoded(group)] == ["gate", "up", "down"]
        assert all(torch.equal(value, tiny.tensors[f"{name}.{short}_proj.weight"]) for short, value in decoded(group))
    assert groups.ignored == ()
    (matrices,) = groups.formats.values()
    assert sum(len(group.matrices) for group in groups.experts) == 36 == len(matrices) - 3 * 4 - 2 - 3 - 2
    routers = [group for group in groups.groups if group.layer in ROUTED and group.name == "ffn"]
    assert [[tensor.short for tensor in group.tensors] for group in routers] == [["norm", "router"]] * 2


def test_experts_do_not_make_the_slices_of_the_head_larger(tiny: Tiny) -> None:
    groups = planned(tiny.config, tiny.folder)
    half_bytes = max(group.needed_bytes for group in groups.groups if group.name in ("attn", "ffn"))
    slices = [group for group in groups.groups if group.name.startswith("head")]
    assert max(group.needed_bytes for group in slices) <= half_bytes + 8 * HIDDEN * 4 < groups.experts[0].needed_bytes
    assert sum(group.needed_bytes for group in slices) == (VOCABULARY + 1) * HIDDEN * 4


def test_what_is_wrong_with_an_expert_is_said(tiny: Tiny, tmp_path: Path) -> None:
    name = "model.layers.2.mlp.experts.4"
    changes = {
        f"{name}.gate_proj.weight": None,
        f"{name}.up_proj.weight": torch.zeros(HIDDEN, INNER),
        f"{name}.down_proj.weight": torch.zeros(HIDDEN, INNER, dtype=torch.int8),
        "model.layers.1.mlp.experts.0.gate_proj.weight": torch.zeros(2),
    }
    with pytest.raises(CheckpointError) as caught:
        planned(tiny.config, changed(tiny, tmp_path, changes))
    file = tmp_path / "model.safetensors"
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(tmp_path), str(file), str(file), str(file)]
    assert f"tensor '{name}.gate_proj.weight' is missing: need shape [{INNER}, {HIDDEN}]" in lines[0]
    assert f"tensor '{name}.up_proj.weight': need shape [{INNER}, {HIDDEN}], have [{HIDDEN}, {INNER}]" in lines[1]
    assert f"tensor '{name}.down_proj.weight': need dtype F64, F32, F16, BF16, have I8" in lines[2]
    assert "'model.layers.1.mlp.experts.0.gate_proj.weight' would be left out" in lines[3]
