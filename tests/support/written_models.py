"""Checkpoints with random weights for any config.json, without transformers, which may know no such family."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipeline.formats.parts import TABLE
from pipeline.models.json_object import JsonObject
from pipeline.models.model_config import parse_config
from pipeline.models.specs import expert_specs, group_specs


def write_model(folder: Path, settings: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """Norms and scalars are about 1, all else about 0. Experts are stored one by one."""
    (folder / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(1)
    tensors = {}
    model = parse_config(JsonObject("config.json", settings))
    for spec in itertools.chain.from_iterable((group_specs(model) | expert_specs(model)).values()):
        if spec.short == TABLE:
            tensors[spec.name] = torch.randint(settings["n_routed_experts"], spec.shape)
            continue
        drawn = torch.randn(spec.shape) * (0.25 if spec.is_matrix else 0.1)
        tensors[spec.name] = (drawn + 1 if "norm" in spec.name or "scalar" in spec.name else drawn).to(dtype)
    save_file(tensors, folder / "model.safetensors")
