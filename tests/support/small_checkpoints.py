"""Checkpoints of a few kilobytes in which no two tensors hold the same bytes."""

import json
from pathlib import Path

import torch
from support.safetensors_files import write_sharded

from pipeline.checkpoints.presets import PRESETS
from pipeline.models.model_config import read_config
from pipeline.models.specs import group_specs

SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 300,
    "hidden_act": "silu",
}


def write_small_checkpoint(
    folder: Path, like: str, dtype: torch.dtype = torch.bfloat16, layers: int = 2
) -> dict[str, torch.Tensor]:
    """Write a checkpoint of the family of a preset into three shards, and return its tensors by name."""
    folder.mkdir()
    own = {"num_hidden_layers": layers, "torch_dtype": str(dtype).removeprefix("torch.")}
    settings = PRESETS[like] | SHAPE | own
    (folder / "config.json").write_text(json.dumps(settings))
    specs = {spec.name: spec.shape for group in group_specs(read_config(folder)).values() for spec in group}
    generator = torch.Generator().manual_seed(len(specs))
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in specs.items()}
    names = sorted(tensors)
    write_sharded(folder, [{name: tensors[name] for name in names[shard::3]} for shard in range(3)])
    return tensors
