"""The weight files of a model as transformers writes them: which tensor lies where. Arithmetic only."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.checkpoints.checkpoint import INDEX_FILE, SINGLE_FILE
from pipeline.checkpoints.header import LENGTH_BYTES, TensorEntry
from pipeline.formats.parts import EMBED_KEY
from pipeline.formats.stacks import format_of_items, item_spec, stack_parts
from pipeline.formats.tensors import ITEM_BITS, Stacked, TensorSpec
from pipeline.models.model_config import ModelConfig
from pipeline.models.specs import expert_specs, group_specs

SHARD_BYTES = 5_000_000_000


class Tensor(NamedTuple):
    """A tensor that a file will hold; `dtype` is spelt as in safetensors files ("BF16")."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * ITEM_BITS[self.dtype] // 8


Tensors = Mapping[str, Tensor]


def model_specs(model: ModelConfig) -> list[TensorSpec]:
    """All tensors in the order of the modules: the embedding first, the output matrix last unless it is that too.

    Of experts that lie in one tensor it is an item of that; they do where they lie transposed, else each lies alone.
    """
    specs = group_specs(model)
    embedding = specs.pop(EMBED_KEY)
    by_layer = sorted((specs | expert_specs(model)).items(), key=lambda item: item[0][0])
    ordered = [*embedding, *itertools.chain.from_iterable(found for _, found in by_layer)]
    stored = [item_spec(spec, spec.stacked) if spec.stacked and spec.stacked.transposed else spec for spec in ordered]
    return [*{spec.name: spec for spec in stored}.values()]


def stack_of(spec: TensorSpec) -> Stacked | None:
    """The stack that it is an item of."""
    return spec.stacked if spec.stacked and spec.stacked.name == spec.name else None


def stored_parts(model: ModelConfig, spec: TensorSpec) -> tuple[TensorSpec, ...]:
    """What a tensor of the model is stored as, the parts of a matrix that is quantised among them."""
    found = model.quantization.format_of(spec.name) if spec.is_matrix else None
    if (stack := stack_of(spec)) is not None:
        return stack_parts(spec, stack, None if found is None else format_of_items(stack, found))
    return (spec,) if found is None else found.stored_as(spec)


def stored_tensors(model: ModelConfig, specs: Iterable[TensorSpec], dtype: str) -> Tensors:
    """What the files hold for these tensors, by name; what may have it has this dtype."""
    parts = [part for spec in specs for part in stored_parts(model, spec)]
    return {part.name: Tensor(dtype if dtype in part.dtypes else part.dtypes[0], part.shape) for part in parts}


def total_bytes(tensors: Tensors) -> int:
    """What they take."""
    return sum(tensor.nbytes for tensor in tensors.values())


def shards(tensors: Tensors, shard_bytes: int = SHARD_BYTES) -> dict[str, Tensors]:
    """The tensors of each file, by its name: one file, or as many as are needed where it would be too large.

    They are filled in module order, and sorted by name inside each, as transformers does.
    """
    filled: list[list[str]] = [[]]
    free_bytes = shard_bytes
    for name, tensor in tensors.items():
        if filled[-1] and tensor.nbytes > free_bytes:
            filled.append([])
            free_bytes = shard_bytes
        filled[-1].append(name)
        free_bytes -= tensor.nbytes
    many = [f"model-{number:05}-of-{len(filled):05}.safetensors" for number in range(1, len(filled) + 1)]
    files = many if len(filled) > 1 else [SINGLE_FILE]
    return {file: {name: tensors[name] for name in sorted(names)} for file, names in zip(files, filled, strict=True)}


def shard_header(tensors: Tensors) -> bytes:
    """What a file of these tensors begins with, in this order."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, begin, end in _offsets(tensors):
        fields[name] = {**tensors[name]._asdict(), "data_offsets": [begin, end]}
    raw = json.dumps(fields, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(LENGTH_BYTES, "little") + raw


def tensor_entries(model: ModelConfig, dtype: str, folder: Path) -> dict[str, TensorEntry]:
    """What the headers of the files would say, if they were in the folder."""
    entries: dict[str, TensorEntry] = {}
    for file, tensors in shards(stored_tensors(model, model_specs(model), dtype)).items():
        entries.update(file_entries(folder / file, tensors))
    return entries


def file_entries(file: Path, tensors: Tensors) -> Iterator[tuple[str, TensorEntry]]:
    """What the header of a file of these tensors, in this order, says of each."""
    data_start = len(shard_header(tensors))
    for name, begin, end in _offsets(tensors):
        yield name, TensorEntry(file, *tensors[name], data_start + begin, end - begin)


def write_index(folder: Path, total: int, weight_map: Mapping[str, str]) -> None:
    """Write which file has which tensor, of so many bytes in `total`."""
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _offsets(tensors: Tensors) -> Iterator[tuple[str, int, int]]:
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        yield name, begin, end
