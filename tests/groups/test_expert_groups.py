"""Experts are weight groups beside the others, however a checkpoint stores them."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import randomised
from transformers import GptOssConfig, Qwen3MoeConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.errors import CheckpointError
from pipeline.formats.dense import all_dense
from pipeline.formats.fp4 import MXFP4_GPT_OSS
from pipeline.formats.matrix import FormatOf, Weights
from pipeline.formats.tensors import stored_dtype
from pipeline.groups.groups import WeightGroup, WeightGroups, find_groups, plan_groups
from pipeline.models.feed_forwards import Experts, FeedForward, Routing
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


def read(group: WeightGroup) -> Weights:
    """What lies in the file."""
    views = {}
    for tensor in group.tensors:
        raw = bytearray(tensor.file.read_bytes()[tensor.start :][: tensor.length])
        views[tensor.short] = torch.frombuffer(raw, dtype=stored_dtype(tensor.dtype)).view(tensor.shape)
    return Weights(views, {matrix.short: matrix.over(views) for matrix in group.matrices})


def decoded(group: WeightGroup) -> dict[str, torch.Tensor]:
    """The matrices of a group by short name, in order."""
    return {short: matrix.decoded(torch.float32) for short, matrix in read(group).matrices.items()}


def test_each_expert_is_a_group_beside_the_others(tiny: Tiny) -> None:
    groups = planned(tiny.config, tiny.folder)
    assert [group.key for group in groups.experts] == [(layer, f"expert.{i}") for layer in ROUTED for i in range(6)]
    for group in groups.experts:
        name = f"model.layers.{group.layer}.mlp.experts.{group.name.removeprefix('expert.')}"
        assert [*decoded(group)] == ["gate", "up", "down"]
        for short, value in decoded(group).items():
            assert torch.equal(value, tiny.tensors[f"{name}.{short}_proj.weight"])
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


def stacked(tiny: Tiny) -> dict[str, torch.Tensor | None]:
    """The tensors in which those of all experts lie, as Qwen3.5 has them, in place of these."""
    changes: dict[str, torch.Tensor | None] = {name: None for name in tiny.tensors if ".experts." in name}
    for layer in ROUTED:
        module = f"model.layers.{layer}.mlp.experts"
        gates, ups, downs = (
            torch.stack([tiny.tensors[f"{module}.{index}.{short}_proj.weight"] for index in range(EXPERTS)])
            for short in ("gate", "up", "down")
        )
        changes |= {f"{module}.gate_up_proj": torch.cat([gates, ups], 1), f"{module}.down_proj": downs}
    return changes


def test_experts_may_lie_in_one_tensor(tiny: Tiny, tmp_path: Path) -> None:
    apart, together = (planned(tiny.config, one) for one in (tiny.folder, changed(tiny, tmp_path, stacked(tiny))))
    assert [group.key for group in together.experts] == [group.key for group in apart.experts]
    for one, other in zip(apart.experts, together.experts, strict=True):
        assert [*decoded(one)] == [*decoded(other)]
        assert all(torch.equal(value, decoded(other)[short]) for short, value in decoded(one).items())
        gate, up, down = other.tensors
        assert gate.start + gate.length == up.start
        assert down.length == down.shape[0] * down.shape[1] * 4


def test_what_is_wrong_with_a_tensor_of_all_experts_is_said_once(tiny: Tiny, tmp_path: Path) -> None:
    module = "model.layers.2.mlp.experts"
    changes = {f"{module}.gate_up_proj": torch.zeros(EXPERTS, INNER, HIDDEN), f"{module}.down_proj": None}
    with pytest.raises(CheckpointError) as caught:
        planned(tiny.config, changed(tiny, tmp_path, stacked(tiny) | changes))
    need = f"need shape [{EXPERTS}, {2 * INNER}, {HIDDEN}], have [{EXPERTS}, {INNER}, {HIDDEN}]"
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'model.safetensors'}: tensor '{module}.gate_up_proj': {need}",
        f"{tmp_path}: tensor '{module}.down_proj' is missing: need shape [{EXPERTS}, {HIDDEN}, {INNER}]; "
        "fetch the file that holds it, or the config.json of these weights",
    ]


GPT_OSS = Experts(
    count=3,
    chosen=2,
    routing=Routing(),
    expert=FeedForward(size=64, fused=True, interleaved=True),
    names=(("gate_up", "gate_up_proj"), ("down", "down_proj")),
    transposed=True,
)


def found_of_gpt_oss(folder: Path, tensors: dict[str, torch.Tensor], format_of: FormatOf) -> tuple[WeightGroup, ...]:
    """Its experts, whose hidden size is 96, from these tensors of them all."""
    save_file({f"layer.mlp.experts.{name}": value for name, value in tensors.items()}, folder / "model.safetensors")
    shapes = GPT_OSS.expert.shapes(96)
    specs = {(0, f"expert.{i}"): [*GPT_OSS.expert_tensors("layer", i, shapes, ("gate_up", "down"))] for i in range(3)}
    with open_checkpoint(folder) as checkpoint:
        return find_groups(specs, checkpoint, format_of)


def test_experts_of_gpt_oss_are_multiplied_by_as_they_lie(tmp_path: Path) -> None:
    torch.manual_seed(0)
    experts = GptOssExperts(GptOssConfig(hidden_size=96, intermediate_size=64, num_local_experts=3))
    tensors = {name: torch.nn.init.normal_(value).bfloat16().detach() for name, value in experts.named_parameters()}
    for index, group in enumerate(found_of_gpt_oss(tmp_path, tensors, all_dense)):
        weights = read(group)
        assert [*weights.matrices] == ["gate_up", "down"]
        for short, matrix in weights.matrices.items():
            stored, bias = tensors[f"{short}_proj"][index], tensors[f"{short}_proj_bias"][index]
            assert matrix.decoded(torch.bfloat16).equal(stored.T)
            x_TD = torch.randn(5, len(stored)).bfloat16()
            torch.testing.assert_close(weights.project(short, x_TD), torch.addmm(bias, x_TD, stored))
        assert [(one.rows, one.columns) for one in group.matrices] == [(128, 96), (96, 64)]


def test_experts_of_gpt_oss_that_are_missing_are_called_as_they_are_stored(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"experts.gate_up_proj' is missing: need shape \[3, 96, 128\]"):
        found_of_gpt_oss(tmp_path, {"other": torch.zeros(1)}, all_dense)


def test_experts_of_gpt_oss_in_mxfp4_are_what_transformers_decodes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors, wanted = {}, {}
    for name, rows, columns in (("gate_up_proj", 128, 96), ("down_proj", 96, 64)):
        blocks = torch.randint(256, (3, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(110, 140, (3, rows, columns // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales, f"{name}_bias": torch.randn(3, rows)}
        wanted[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    for index, group in enumerate(found_of_gpt_oss(tmp_path, tensors, lambda _: MXFP4_GPT_OSS)):
        for short, value in decoded(group).items():
            assert value.equal(wanted[f"{short}_proj"][index].T)
            assert read(group).bias(short).equal(tensors[f"{short}_proj_bias"][index])


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
