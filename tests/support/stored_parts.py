"""Matrices whose parts lie in a file, found there as a format asks for them."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.formats.matrix import Format, Matrix, StoredMatrix
from pipeline.formats.tensors import TensorRange, TensorSpec, stored_dtype

MODULE = "model.q_proj."


def find(file: Path, stored_in: Format, shape: tuple[int, int], parts: Mapping[str, torch.Tensor]) -> StoredMatrix:
    """Write the parts, by their names behind that of the module, and take of them what the format asks for."""
    save_file({f"{MODULE}{name}": part.contiguous() for name, part in parts.items()}, file)
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    spec = TensorSpec("q", f"{MODULE}weight", shape)
    ranges = []
    for asked in stored_in.stored_as(spec):
        (name,) = (name for name in asked.names or (asked.name,) if name in header)
        entry = header.pop(name)
        assert tuple(entry["shape"]) in (asked.shapes or (asked.shape,)) or (asked.is_header and asked.shape == ())
        assert entry["dtype"] in asked.dtypes
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        held = content[start:end] if asked.is_header else b""
        found = TensorRange(asked.short, name, file, start, end - start, (*entry["shape"],), entry["dtype"], held)
        ranges.append(found)
    assert header.keys() <= {"__metadata__"}, "a part that the format does not ask for"
    return stored_in.stored(spec, tuple(ranges))


def read(stored: StoredMatrix, device: str = "cpu") -> Matrix:
    """What multiplies, over the bytes of its file."""
    views = {}
    for part in stored.tensors:
        content = bytearray(part.file.read_bytes()[part.start : part.start + part.length])
        views[part.short] = torch.frombuffer(content, dtype=stored_dtype(part.dtype)).view(part.shape).to(device)
    return stored.over(views)
