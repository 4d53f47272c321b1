"""Small safetensors files, sound and crafted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def packed(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    """The bytes of a file with this header, which may lie."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def field(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_sharded(folder: Path, shards: list[dict[str, torch.Tensor]]) -> None:
    """One file per dictionary, and the index that names them."""
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    write_index(folder, weight_map)


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def in_every_dtype(tensors: dict[str, torch.Tensor]) -> None:
    """One kind of tensor in each dtype, which transformers casts to that of config.json."""
    for name in tensors:
        tensors[name] = tensors[name].bfloat16()
    for part, dtype in {"up_proj": torch.float16, "norm": torch.float64, "lm_head": torch.float64}.items():
        for name in tensors:
            if part in name:
                tensors[name] = tensors[name].to(dtype)


def unpad(file: Path) -> None:
    """Let the data of a file begin at an odd byte, as writers leave it that do not pad the header."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].rstrip()
    file.write_bytes(packed(header + b" " * (1 - len(header) % 2), raw[8 + size :]))
