"""The weight files of a model as transformers writes them: which tensor lies where. Arithmetic only."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.checkpoints.checkpoint import SINGLE_FILE
from pipeline.checkpoints.header import LENGTH_BYTES, TensorEntry
from pipeline.formats.parts import EMBED_KEY
from pipeline.formats.tensors import ITEM_BITS
from pipeline.models.model_config import ModelConfig
from pipeline.models.specs import group_specs

SHARD_BYTES = 5_000_000_000
Shapes = Mapping[str, tuple[int, ...]]


def tensor_shapes(model: ModelConfig) -> Shapes:
    """All tensors by name in the order of the modules: the embedding first, the output matrix last."""
    specs = group_specs(model)
    ordered = [*specs.pop(EMBED_KEY), *itertools.chain.from_iterable(specs.values())]
    return {spec.name: spec.shape for spec in ordered}


def total_bytes(shapes: Shapes, dtype: str) -> int:
    """What tensors of these shapes take; `dtype` is spelt as in safetensors files ("BF16")."""
    return sum(map(math.prod, shapes.values())) * ITEM_BITS[dtype] // 8


def shards(shapes: Shapes, dtype: str, shard_bytes: int = SHARD_BYTES) -> dict[str, Shapes]:
    """The tensors of each file, by its name: one file, or as many as are needed where it would be too large.

    They are filled in module order, and sorted by name inside each, as transformers does.
    """
    filled: list[list[str]] = [[]]
    free_items = shard_items = shard_bytes * 8 // ITEM_BITS[dtype]
    for name, shape in shapes.items():
        if filled[-1] and math.prod(shape) > free_items:
            filled.append([])
            free_items = shard_items
        filled[-1].append(name)
        free_items -= math.prod(shape)
    many = [f"model-{number:05}-of-{len(filled):05}.safetensors" for number in range(1, len(filled) + 1)]
    files = many if len(filled) > 1 else [SINGLE_FILE]
    return {file: {name: shapes[name] for name in sorted(names)} for file, names in zip(files, filled, strict=True)}


def shard_header(shapes: Shapes, dtype: str) -> bytes:
    """What a file of these tensors begins with, in this order."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, begin, end in _offsets(shapes, dtype):
        fields[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [begin, end]}
    raw = json.dumps(fields, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(LENGTH_BYTES, "little") + raw


def tensor_entries(model: ModelConfig, dtype: str, folder: Path) -> dict[str, TensorEntry]:
    """What the headers of the files would say, if they were in the folder."""
    entries = {}
    for file, shapes in shards(tensor_shapes(model), dtype).items():
        data_start = len(shard_header(shapes, dtype))
        for name, begin, end in _offsets(shapes, dtype):
            entries[name] = TensorEntry(folder / file, dtype, shapes[name], data_start + begin, end - begin)
    return entries


def _offsets(shapes: Shapes, dtype: str) -> Iterator[tuple[str, int, int]]:
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + total_bytes({name: shape}, dtype)
        yield name, begin, end
