"""What `penstock convert` wrote, decoded by formulas of the tests' own."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from support.quantised_models import FP4, spread


def decode(name: str, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    scales = parts["weight_scale"]
    if name == "fp8":
        return parts["weight"].float() * scales.float()
    packed = parts["weight_packed"]
    if name == "mxfp4":
        codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1).int()
        return FP4[codes] * spread((scales.float() - 127).exp2(), codes.shape[1])
    numbers = (packed.unsqueeze(-1) >> torch.arange(0, 32, 4)).bitwise_and_(15).flatten(1) - 8
    assert parts["weight_shape"].tolist() == [*numbers.shape]
    return (numbers * spread(scales, numbers.shape[1])).to(scales.dtype).float()


def decoded(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a converted folder, in fp32."""
    stored = {path: tensor for file in folder.glob("*.safetensors") for path, tensor in load_file(file).items()}
    weights: dict[str, torch.Tensor] = {}
    for path, tensor in stored.items():
        stem, _, ending = path.rpartition(".")
        if ending == "weight_scale":
            parts = {path.removeprefix(f"{stem}."): one for path, one in stored.items() if path.startswith(f"{stem}.")}
            weights[f"{stem}.weight"] = decode(name, parts)
        elif not ending.startswith("weight") or f"{stem}.weight_scale" not in stored:
            weights[path] = tensor.float()
    return weights
