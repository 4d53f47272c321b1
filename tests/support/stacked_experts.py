"""Experts as gpt-oss stores them, those of a layer in one tensor: as they are, or as random MXFP4."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GROUP = 32
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.(weight|bias)")
QUANTISED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def stack(folder: Path) -> None:
    """Write the experts of a checkpoint of one file, which are stored one by one, as gpt-oss does."""
    tensors = load_file(folder / "model.safetensors")
    found: dict[str, dict[int, torch.Tensor]] = {}
    for name in [*tensors]:
        if (match := EXPERT.fullmatch(name)) is not None:
            module, index, short, kind = match.groups()
            one = tensors.pop(name)
            together = found.setdefault(f"{module}.{short}{'_bias' if kind == 'bias' else ''}", {})
            together[int(index)] = one if kind == "bias" else one.T
    tensors |= {name: torch.stack([some[index] for index in range(len(some))]) for name, some in found.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def quantise(folder: Path) -> None:
    """Put random blocks and scales, by the format's definition, in the place of matrices that are stacked so."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        count, columns, rows = tensors.pop(name).shape
        blocks = (count, rows, columns // GROUP)
        tensors[f"{name}_blocks"] = torch.randint(256, (*blocks, GROUP // 2), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(122, 127, blocks, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "quantization_config": QUANTISED}))
