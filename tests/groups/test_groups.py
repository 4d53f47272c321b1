from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.safetensors_files import write_sharded

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.errors import CheckpointError
from pipeline.formats.dense import Dense
from pipeline.formats.packed_ints import PackedIntegers
from pipeline.formats.tensors import TensorRange, TensorSpec, stored_dtype
from pipeline.groups.groups import Specs, WeightGroup, WeightGroups, plan_groups

HIDDEN, FFN, VOCABULARY, LAYERS = 8, 20, 100, 2


def make_specs(tied: bool = False) -> dict[tuple[int, str], tuple[TensorSpec, ...]]:
    specs: dict[tuple[int, str], tuple[TensorSpec, ...]] = {}
    for layer in range(LAYERS):
        specs[layer, "attn"] = (
            TensorSpec("norm", f"{layer}.norm1", (HIDDEN,)),
            TensorSpec("q", f"{layer}.q", (HIDDEN, HIDDEN)),
        )
        specs[layer, "ffn"] = (
            TensorSpec("norm", f"{layer}.norm2", (HIDDEN,)),
            TensorSpec("up", f"{layer}.up", (FFN, HIDDEN)),
            TensorSpec("down", f"{layer}.down", (HIDDEN, FFN)),
        )
    output = "embed" if tied else "lm_head"
    specs[LAYERS, "head"] = (
        TensorSpec("norm", "norm", (HIDDEN,)),
        TensorSpec("output", output, (VOCABULARY, HIDDEN)),
    )
    specs[-1, "embed"] = (TensorSpec("embed", "embed", (VOCABULARY, HIDDEN)),)
    return specs


def make_tensors(tied: bool = False, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    specs = {spec.name: spec.shape for group in make_specs(tied).values() for spec in group}
    return {name: torch.randn(shape).to(dtype) for name, shape in specs.items()}


def plan(folder: Path, shards: list[dict[str, torch.Tensor]], tied: bool = False) -> WeightGroups:
    write_sharded(folder, shards)
    return planned(make_specs(tied), folder)


def planned(specs: Specs, folder: Path) -> WeightGroups:
    with open_checkpoint(folder) as checkpoint:
        return plan_groups(specs, checkpoint)


def stored(tensor: TensorRange) -> torch.Tensor:
    raw = bytearray(tensor.file.read_bytes()[tensor.start :][: tensor.length])
    return torch.frombuffer(raw, dtype=stored_dtype(tensor.dtype)).view(tensor.shape)


def split(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Into two shards, so that layers and halves lie in both."""
    names = sorted(tensors)
    return [{name: tensors[name] for name in names[0::2]}, {name: tensors[name] for name in names[1::2]}]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_groups_are_the_whole_model_in_compute_order(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = make_tensors(tied, dtype)
    groups = plan(tmp_path, split(tensors), tied)
    names = [(group.layer, group.name) for group in groups.groups]
    assert names[:4] == [(0, "attn"), (0, "ffn"), (1, "attn"), (1, "ffn")]
    assert names[4:] == [(2, f"head.{index}") for index in range(len(names) - 4)]
    for group in groups.groups[:4]:
        for tensor in group.tensors:
            assert torch.equal(stored(tensor), tensors[tensor.name])
    assert torch.equal(stored(groups.embed.tensors[0]), tensors["embed"])
    assert (groups.dtype, groups.ignored) == (dtype, ())


def head_slices(groups: WeightGroups) -> list[WeightGroup]:
    return [group for group in groups.groups if group.name.startswith("head.")]


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_cut_into_slices_as_large_as_an_attn_and_an_ffn_group_in_turn(tied: bool, tmp_path: Path) -> None:
    tensors = make_tensors(tied)
    groups = plan(tmp_path, [tensors], tied)
    slices = head_slices(groups)
    assert [[tensor.short for tensor in group.tensors] for group in slices] == [["norm", "output"], *[["output"]] * 3]
    outputs = [group.tensors[-1] for group in slices]
    assert torch.equal(torch.cat([stored(output) for output in outputs]), tensors["embed" if tied else "lm_head"])
    # 13 steps of 8 rows, cut where 144, 800 and 944 of the 1600 bytes of two groups of each kind have gone
    assert [output.shape[0] for output in outputs] == [8, 40, 8, 44]
    attn_bytes, ffn_bytes = (group.needed_bytes for group in groups.groups[:2])
    for group, most_bytes in zip(slices, [attn_bytes, ffn_bytes] * 2, strict=True):
        assert group.tensors[-1].length <= most_bytes + 8 * HIDDEN * 2


def test_a_head_smaller_than_an_attn_group_stays_whole(tmp_path: Path) -> None:
    specs = make_specs()
    specs[LAYERS, "head"] = (specs[LAYERS, "head"][0], TensorSpec("output", "lm_head", (7, HIDDEN)))
    write_sharded(tmp_path, [{**make_tensors(), "lm_head": torch.zeros(7, HIDDEN).bfloat16()}])
    (group,) = head_slices(planned(specs, tmp_path))
    assert group.tensors[1].shape == (7, HIDDEN)


def test_a_head_of_fewer_rows_than_slices_has_no_empty_slice(tmp_path: Path) -> None:
    specs = make_specs()
    specs[LAYERS, "head"] = (specs[LAYERS, "head"][0], TensorSpec("output", "lm_head", (5, 4000)))
    write_sharded(tmp_path, [{**make_tensors(), "lm_head": torch.zeros(5, 4000).bfloat16()}])
    (group,) = head_slices(planned(specs, tmp_path))
    assert group.tensors[1].shape == (5, 4000)


def test_what_the_next_token_does_not_depend_on_is_named(tmp_path: Path) -> None:
    buffers = {f"{layer}.rotary_emb.inv_freq": torch.zeros(4, dtype=torch.int64) for layer in range(LAYERS)}
    masks = ("model.layers.0.self_attn.bias", "layers.0.attention.masked_bias", "model.position_ids")
    other = ("model.layers.1.self_attn.k_proj.k_scale", "model.visual.patch.weight", "score.weight", "v_head.bias")
    more = {name: torch.zeros(2) for name in (*masks, *other)}
    assert plan(tmp_path, [{**make_tensors(), **buffers, **more}]).ignored == other


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("model.layers.1.self_attn.q_proj.bias", "this family has none there"),
        ("model.layers.0.self_attn.k_norm.weight", "this family has none there"),
        ("lm_head.bias", "this family has none there"),
        ("lm_head.weight", "config.json describes a model without it"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "belongs to an adapter"),
        ("model.layers.0.mlp.up_proj.weight_scale", "belongs to quantised weights"),
        ("model.layers.0.mlp.up_proj.qweight", "belongs to quantised weights"),
        ("model.layers.0.mlp.gate_up_proj.weight", "config.json describes a model without it"),
        ("model.layers.0.pre_feedforward_layernorm.weight", "config.json describes a model without it"),
        ("model.layers.7.mlp.up_proj.weight", "is of layer 7, but config.json has 2 layers"),
        ("layers.0.mlp.up_proj.weight", "config.json describes a model without it"),
        ("model.embed_positions.weight", "config.json describes a model without it"),
    ],
)
def test_what_would_change_the_next_token_is_never_left_out(name: str, why: str, tmp_path: Path) -> None:
    told = refusal(tmp_path, {**make_tensors(), name: torch.zeros(3)})
    assert f"{tmp_path / 'model.safetensors'}: tensor {name!r}" in told
    assert why in told


def test_each_tensor_may_have_a_dtype_of_its_own(tmp_path: Path) -> None:
    others = {
        "norm": torch.randn(HIDDEN),
        "lm_head": torch.randn(VOCABULARY, HIDDEN).double(),
        "1.up": torch.randn(FFN, HIDDEN).half(),
        "embed": torch.randn(VOCABULARY, HIDDEN),
    }
    groups = plan(tmp_path, split({**make_tensors(), **others}))
    assert groups.dtype == torch.bfloat16
    output = torch.cat([stored(group.tensors[-1]) for group in head_slices(groups)])
    assert torch.equal(output, others["lm_head"])
    by_name = {tensor.name: tensor for group in groups.groups for tensor in group.tensors} | {
        "embed": groups.embed.tensors[0]
    }
    assert all(torch.equal(stored(by_name[name]), others[name]) for name in ("norm", "1.up", "embed"))


def test_an_embedding_whose_rows_share_words_is_refused(tmp_path: Path) -> None:
    tensors = make_tensors()
    shape = torch.tensor(tensors.pop("embed").shape)
    zeros, words = torch.zeros(-(-VOCABULARY // 8), 1, dtype=torch.int32), torch.zeros(VOCABULARY, 1, dtype=torch.int32)
    tensors |= {"embed_packed": words, "embed_scale": words.half(), "embed_shape": shape}
    write_sharded(tmp_path, [{**tensors, "embed_zero_point": zeros}])
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError) as caught:
        plan_groups(make_specs(), checkpoint, lambda name: PackedIntegers(4, 8, False) if name == "embed" else Dense())
    told = "'embed_zero_point': need an embedding whose rows are stored one by one, have a part of shape [13, 1]"
    assert told in str(caught.value)


def test_tensors_are_found_with_the_prefix_of_the_decoder_and_without(tmp_path: Path) -> None:
    tensors = make_tensors()
    for name, alias in (("0.q", "model.0.q"), ("norm", "model.norm"), ("lm_head", "model.lm_head")):
        tensors[alias] = tensors.pop(name)
    groups = plan(tmp_path, split(tensors))
    assert groups.groups[0].tensors[1].name == "model.0.q"
    assert [tensor.name for tensor in head_slices(groups)[0].tensors] == ["model.norm", "model.lm_head"]
    assert groups.ignored == ()


def refusal(folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        planned(make_specs(), folder)
    return str(caught.value)


def test_everything_that_does_not_fit_is_listed_at_once(tmp_path: Path) -> None:
    tensors = make_tensors()
    del tensors["0.q"], tensors["norm"]
    tensors["1.up"] = torch.zeros(HIDDEN, FFN).bfloat16()
    tensors["1.down"] = torch.zeros(HIDDEN, FFN, dtype=torch.int8)
    check = "config.json says otherwise: check its quantization_config"
    file, fetch = tmp_path / "model.safetensors", "fetch the file that holds it, or the config.json of these weights"
    assert refusal(tmp_path, tensors).splitlines() == [
        f"{tmp_path}: tensor '0.q' is missing: need shape [8, 8]; {fetch}",
        f"{file}: tensor '1.up': need shape [20, 8], have [8, 20]",
        f"{file}: tensor '1.down': need dtype F64, F32, F16, BF16, have I8; {check}",
        f"{tmp_path}: tensor 'norm' is missing: need shape [8]; {fetch}",
    ]
