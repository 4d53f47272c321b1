"""What `Model.open` says to quantised checkpoints that are damaged, or of which config.json says otherwise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import quantised_models

from pipeline import CheckpointError, ConfigError, Model, PenstockError

UP = "model.layers.1.mlp.up_proj"
Damage = Callable[[Path], object]


def part(ending: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    """Change the tensor of that ending of one matrix, or take it away."""

    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        changed = change(tensors.pop(f"{UP}.{ending}", torch.zeros(3)))
        if changed is not None:
            tensors[f"{UP}.{ending}"] = changed.contiguous()
        save_file(tensors, file, metadata={"format": "pt"})

    return damage


def gone(tensor: torch.Tensor) -> None:
    """Taken away."""


def config(**changes: Any) -> Damage:
    """Change quantization_config; what is None is taken away."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        settings = json.loads(path.read_text())
        said = settings["quantization_config"] | changes
        settings["quantization_config"] = {key: value for key, value in said.items() if value is not None}
        path.write_text(json.dumps(settings))

    return damage


def weights(**changes: Any) -> Damage:
    """Change what compressed-tensors says of the weights of its only group."""
    said: Any = quantised_models.FORMATS["ct int4"].config["config_groups"]["group_0"]
    return config(config_groups={"group_0": {**said, "weights": {**said["weights"], **changes}}})


def state(**changes: Any) -> Damage:
    """Change the quant state of bitsandbytes."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        said = json.loads(bytes(tensor.tolist())) | changes
        return torch.tensor([*json.dumps(said).encode()], dtype=torch.uint8)

    return part("weight.quant_state.bitsandbytes__nf4", change)


CT, GPTQ, FP8 = "ct int4", "gptq 8 bits ordered", "fp8 blocks"
LIST = r"one of these: fp8 .*compressed-tensors .*awq .*gptq .*mxfp4.*modelopt .*bitsandbytes.*; have "
DAMAGED: dict[str, tuple[str, Damage, str]] = {
    "scales are missing": (CT, part("weight_scale", gone), rf"{UP}.weight_scale' is missing: need shape \[160, 2\]"),
    "numbers are missing": (CT, part("weight_packed", gone), rf"{UP}.weight_packed' is missing"),
    "a row is missing": (CT, part("weight_packed", lambda t: t[1:]), r"need shape \[160, 8\], have \[159, 8\]"),
    "a column is missing": (CT, part("weight_packed", lambda t: t[:, 1:]), r"need shape \[160, 8\], have \[160, 7\]"),
    "a group is missing": (CT, part("weight_scale", lambda t: t[:, 1:]), r"need shape \[160, 2\], have \[160, 1\]"),
    "another shape is said": (CT, part("weight_shape", lambda t: t + 1), r"weight_shape.*\[160, 64\].*\[161, 65\]"),
    "no shape is said": (CT, part("weight_shape", gone), r"weight_shape' is missing"),
    "scales are whole numbers": (CT, part("weight_scale", lambda t: t.int()), r"weight_scale.*need dtype.*have I32"),
    "groups do not divide": (CT, weights(group_size=48), r"q_proj.*48"),
    "groups are of another size": (CT, weights(group_size=16), r"need shape \[64, 4\], have \[64, 2\]"),
    "no groups but rows": (CT, weights(strategy="channel", group_size=None), r"need shape \[64, 1\], have \[64, 2\]"),
    "numbers have other bits": (CT, weights(num_bits=8), r"weight_packed.*need shape \[64, 16\], have \[64, 8\]"),
    "3 bits": (CT, weights(num_bits=3), rf"weights: num_bits: .*{LIST}3"),
    "a negative group": (CT, weights(group_size=-7), r"group_size: need a whole number from 1 .*have -7"),
    "no zero points": (CT, weights(symmetric=False), r"weight_zero_point' is missing"),
    "zero points for nothing": ("ct int4 asymmetric", weights(), r"weight_zero_point' would be left out"),
    "columns of an order that nobody knows": (CT, weights(actorder="sideways"), rf"actorder: .*{LIST}'sideways'"),
    "another container": (CT, config(format="marlin-24"), rf"format: .*{LIST}'marlin-24'"),
    "no pattern": (CT, config(ignore=["re:("]), r"ignore: need patterns of names .*have '\('"),
    "left out, but quantised": (CT, config(ignore=["lm_head", UP]), rf"{UP}.weight' is missing"),
    "rotated weights": (CT, config(transform_config={"config_groups": {"u": {}}}), rf"transform_config: .*{LIST}"),
    "no modules": (CT, config(config_groups={}), rf"config_groups: .*{LIST}"),
    "plain after all": (CT, config(config_groups={"a": {"targets": ["Linear"]}}), r"q_proj.weight' is missing"),
    "another method": (CT, config(quant_method="quark"), rf"quant_method: .*{LIST}'quark'"),
    "one matrix is plain": (CT, part("weight", lambda t: torch.zeros(160, 64)), rf"{UP}.weight' would be left out"),
    "AWQ of another kernel": ("awq", config(version="gemv"), rf"version: .*{LIST}'gemv'"),
    "AWQ of 8 bits": ("awq", config(bits=8), rf"bits: .*{LIST}8"),
    "AWQ without zeros": ("awq", part("qzeros", gone), rf"{UP}.qzeros' is missing"),
    "AWQ turned around": ("awq", part("qweight", lambda t: t.T), r"need shape \[64, 20\], have \[20, 64\]"),
    "GPTQ of 2 bits": (GPTQ, config(bits=2), rf"bits: .*{LIST}2"),
    "GPTQ for a kernel": (GPTQ, config(checkpoint_format="marlin"), rf"checkpoint_format: .*{LIST}'marlin'"),
    "GPTQ without order": (GPTQ, part("g_idx", gone), rf"{UP}.g_idx' is missing: need shape \[64\]"),
    "GPTQ of a group that is not there": (GPTQ, part("g_idx", lambda t: t + 1), rf"{UP}.g_idx'.*2"),
    "GPTQ with groups left out": (GPTQ, part("g_idx", lambda t: t * 0), r"need all groups from 0 to 1, have 0 to 0"),
    "GPTQ with a bias": (GPTQ, part("bias", lambda t: torch.ones(160)), rf"{UP}.bias' would be left out"),
    "FP8 without scales": (FP8, part("weight_scale_inv", gone), rf"{UP}.weight_scale_inv' is missing"),
    "FP8 with a block too much": (
        FP8,
        part("weight_scale_inv", lambda t: torch.cat([t, t])),
        r"\[2, 1\], have \[4, 1\]",
    ),
    "FP8 of other blocks": (FP8, config(weight_block_size=[64, 64]), r"need shape \[3, 1\], have \[2, 1\]"),
    "FP8 of half a block": (FP8, config(weight_block_size=[128]), r"weight_block_size: need 2 whole numbers"),
    "FP8 that is none": (FP8, part("weight", lambda t: t.bfloat16()), r"need dtype F8_E4M3, have BF16"),
    "FP8 of another kind": (FP8, config(fmt="e5m2"), rf"fmt: .*{LIST}'e5m2'"),
    "FP8 rounded to exponents": (
        "ct fp8 rows",
        part("weight_scale", lambda t: torch.full(t.shape, 120, dtype=torch.uint8)),
        r"weight_scale': need dtype BF16, F16, F32, have U8",
    ),
    "NVFP4 without the scale of all": (
        "ct nvfp4",
        part("weight_global_scale", gone),
        r"weight_global_scale' is missing",
    ),
    "ModelOpt of another kind": ("modelopt nvfp4", config(quant_algo="W4A8_AWQ"), rf"quant_algo: .*{LIST}'W4A8_AWQ'"),
    "a quant state of another matrix": ("nf4", state(shape=[64, 160]), r"quant_state.*\[160, 64\].*\[64, 160\]"),
    "a quant state that is none": (
        "nf4",
        part("weight.quant_state.bitsandbytes__nf4", lambda t: t[:9]),
        r"quant state",
    ),
    "an empty quant state": ("nf4", part("weight.quant_state.bitsandbytes__nf4", lambda t: t[:0]), r"need 1 to .* 0"),
    "blocks that the state does not say": ("nf4", state(blocksize=128), r"need shape \[80\]"),
    "8 bits of bitsandbytes": ("nf4", config(load_in_4bit=False, load_in_8bit=True), rf"load_in_8bit: .*{LIST}"),
    "4 and 8 bits of bitsandbytes": ("nf4", config(load_in_8bit=True), rf"load_in_8bit: .*{LIST}True"),
    "fp4 of bitsandbytes": ("nf4", config(bnb_4bit_quant_type=None), rf"bnb_4bit_quant_type: .*{LIST}'fp4'"),
    "scales of no scales": ("nf4", config(bnb_4bit_use_double_quant=True), r"absmax.*need dtype U8, have F32"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sound")


@pytest.mark.parametrize("what", DAMAGED)
async def test_what_is_damaged_is_refused_before_any_work(what: str, sound: Path, tmp_path: Path) -> None:
    name, damage, says = DAMAGED[what]
    if not (sound / name).exists():
        quantised_models.save(quantised_models.FORMATS[name], "llama", sound / name)
    shutil.copytree(sound / name, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    with pytest.raises(PenstockError, match=says) as caught:
        await Model.open(tmp_path)
    assert isinstance(caught.value, CheckpointError | ConfigError)
    assert str(tmp_path) in str(caught.value)
