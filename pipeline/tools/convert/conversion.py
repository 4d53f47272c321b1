"""What a conversion writes, known before any weight is read: each tensor of the model, from where, and as what."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.checkpoints.checkpoint import CONFIG_FILE, CONFIG_KEY, Checkpoint
from pipeline.checkpoints.shard_layout import Tensor
from pipeline.checkpoints.written_formats import GROUPS, WrittenFormat, left_out
from pipeline.errors import ConfigError
from pipeline.formats.decoding import BLOCK_ROWS
from pipeline.formats.dense import Dense, StoredDense
from pipeline.formats.matrix import Format, StoredMatrix
from pipeline.formats.parts import EMBED_KEY, HEAD, gives_logits
from pipeline.formats.tensors import TensorRange, TensorSpec, stored_dtype, stored_name
from pipeline.groups.groups import Specs, WeightGroups, plan_groups
from pipeline.models.json_object import JsonObject
from pipeline.models.model_config import ModelConfig, parse_config, read_settings
from pipeline.models.specs import expert_specs, group_specs

BLOCK_ITEMS = 2 << 20
"""Of a matrix, decoded and encoded at once."""
BYTES_PER_ITEM = 64
"""What that takes at most for each, with what is read and what is written."""
KINDS = {"embed": "embedding", "output": "head"}
"""What matrices are called whose names inside a group are not what people call them."""
VECTORS = "norms and biases"
REPLACED = ("quantization_config", "compression_config", CONFIG_KEY)
"""What config.json says of how and where weights are stored."""


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor of the model, [F, D] or [F], as it is read and as it is written.

    A matrix is read from `sources`, of which each has the next rows, and written in `format` as `parts`; a norm or a
    bias is copied from `vector`. `dtype` is what it is decoded to.
    """

    spec: TensorSpec
    sources: tuple[StoredMatrix, ...]
    vector: TensorRange | None
    dtype: torch.dtype
    format: Format
    parts: Mapping[TensorSpec, Tensor]

    @property
    def kind(self) -> str:
        """What people call all tensors that do the same."""
        return KINDS.get(self.spec.short, self.spec.short) if self.sources else VECTORS

    @property
    def quantised(self) -> bool:
        """Whether it is written in fewer bits than it is decoded to."""
        return self.parts.keys() != {self.spec}

    @property
    def bytes_before(self) -> int:
        """What is read."""
        read = [self.vector] if self.vector else [one for source in self.sources for one in source.tensors]
        return sum(tensor.length for tensor in read)

    @property
    def bytes_after(self) -> int:
        """What is written."""
        return sum(tensor.nbytes for tensor in self.parts.values())

    def written_rows(self, rows: int) -> StoredMatrix:
        """So many rows, as they are written."""
        spec = replace(self.spec, shape=(rows, *self.spec.shape[1:]))
        ranges = [
            TensorRange(part.short, part.name, Path(), 0, 0, part.shape, self.parts[whole].dtype)
            for whole, part in zip(self.parts, self.format.stored_as(spec), strict=True)
        ]
        return self.format.stored(spec, tuple(ranges))

    def block_rows(self, source: StoredMatrix) -> int:
        """How many rows are converted at once."""
        step = source.row_step or BLOCK_ROWS
        return max(step, BLOCK_ITEMS // self.spec.shape[1] // step * step)

    @property
    def memory_bytes(self) -> int:
        """About what is held at once to convert it: of a source whose rows do not lie together all that is stored."""
        whole = [sum(part.length for part in one.tensors) for one in self.sources if one.row_step is None]
        rows = max((min(one.rows, self.block_rows(one)) for one in self.sources), default=0)
        return max(whole, default=0) + rows * math.prod(self.spec.shape[1:]) * BYTES_PER_ITEM


@dataclass(frozen=True, slots=True)
class Conversion:
    """All tensors, and the config.json to write.

    `formats_before` says how many matrices were read in which format, and `ignored` which tensors are left out.
    """

    settings: Mapping[str, object]
    tensors: tuple[NewTensor, ...]
    format_name: str
    formats_before: Mapping[str, int]
    ignored: tuple[str, ...]

    @property
    def written(self) -> dict[str, Tensor]:
        """What the files will hold."""
        return {part.name: tensor for one in self.tensors for part, tensor in one.parts.items()}

    @property
    def memory_bytes(self) -> int:
        """About what is held at once, beside torch."""
        return max(one.memory_bytes for one in self.tensors)


def plan_conversion(folder: Path, checkpoint: Checkpoint, to: WrittenFormat, *, keep_head: bool = False) -> Conversion:
    """Find all tensors of the model in `folder`; matrices are quantised, but for the embedding and a head tied to it.

    With `keep_head` any head stays as it is.

    Raises ConfigError or CheckpointError where it cannot be read, or has matrices that the format cannot hold.
    """
    read = read_settings(folder)
    model = parse_config(read, folder)
    specs = group_specs(model) | expert_specs(model)
    _check_experts(folder, specs)
    groups = plan_groups(specs, checkpoint, model.quantization.format_of, model.drafting_layers)
    settings = {key: value for key, value in read.values.items() if key not in REPLACED}
    ignored = left_out(model, head=keep_head or model.tied_embeddings)
    settings["quantization_config"] = to.quantization_config(ignored)
    new = parse_config(JsonObject(CONFIG_FILE, settings))
    found = [*_found(specs, groups)]
    quantised = [spec for spec, *_ in found if spec.is_matrix and not isinstance(_format(new, spec), Dense)]
    _check_columns(folder, quantised, to.group)
    tensors = tuple(_new_tensor(model, new, *one) for one in found)
    before = {name: len(matrices) for name, matrices in groups.formats.items()}
    return Conversion(settings, tensors, _format(new, quantised[0]).name, before, groups.ignored)


def _format(model: ModelConfig, spec: TensorSpec) -> Format:
    return model.quantization.format_of(spec.name)


def _check_experts(folder: Path, specs: Specs) -> None:
    """Raises ConfigError for experts that nothing reads one by one, and for DeepSeek-V4."""
    for spec in itertools.chain.from_iterable(specs.values()):
        if spec.diagonal_blocks > 1:
            raise ConfigError(
                f"{folder}: {spec.name}: need a matrix that is multiplied whole, have {spec.diagonal_blocks} blocks of "
                "one, which no reader knows in another format; use the checkpoint as it is published, in FP8 and FP4"
            )
        if spec.stacked is not None and spec.stacked.transposed:
            raise ConfigError(
                f"{folder}: {spec.stacked.name}: need experts that are stored one by one, as no reader knows those of "
                "this family so; use it as it is, or in its own MXFP4"
            )


def _check_columns(folder: Path, specs: Sequence[TensorSpec], group: int | None) -> None:
    """Raises ConfigError where a group does not divide the columns of all matrices."""
    wrong = [spec for spec in specs if group is not None and spec.shape[1] % group]
    if wrong:
        fits = next((size for size in GROUPS if not any(spec.shape[1] % size for spec in specs)), None)
        advice = f"--to int4 --group {fits}" if fits else "--to fp8, which has one scale a row"
        raise ConfigError(
            f"{folder}: {wrong[0].name}: need columns that the group size, {group}, divides, have {wrong[0].shape[1]}, "
            f"as in {len(wrong)} of {len(specs)} matrices; convert it with {advice}"
        )


def _found(
    specs_by_group: Specs, groups: WeightGroups
) -> Iterator[tuple[TensorSpec, tuple[StoredMatrix, ...], TensorRange | None]]:
    """Each tensor with what it is read from. A head that is the embedding itself is none of its own."""
    specs = {(*key, spec.short): spec for key, of_group in specs_by_group.items() for spec in of_group}
    yield replace(specs[*EMBED_KEY, groups.embed.short], names=()), (groups.embed,), None
    sources: dict[TensorSpec, list[StoredMatrix]] = {}
    vectors: dict[TensorSpec, TensorRange] = {}
    for group in (*groups.groups, *groups.experts):
        part = HEAD if gives_logits(group.name) else group.name
        for tensor in group.vectors:
            vectors[specs[group.layer, part, tensor.short]] = tensor
        for matrix in group.matrices:
            sources.setdefault(specs[group.layer, part, matrix.short], []).append(matrix)
    for spec in specs.values():
        if spec in vectors:
            yield spec, (), vectors[spec]
        elif spec in sources and sources[spec][0].tensors[0].name != groups.embed.tensors[0].name:
            yield replace(spec, name=(*spec.names, spec.name)[0], names=()), tuple(sources[spec]), None


def _new_tensor(
    model: ModelConfig,
    new: ModelConfig,
    spec: TensorSpec,
    sources: tuple[StoredMatrix, ...],
    vector: TensorRange | None,
) -> NewTensor:
    if vector is not None:
        copied = Tensor(vector.dtype, vector.shape)
        return NewTensor(spec, (), vector, stored_dtype(vector.dtype), Dense(), {spec: copied})
    written, dtype = _format(new, spec), sources[0].dtype
    if not (isinstance(written, Dense) and isinstance(sources[0], StoredDense)):
        dtype = model.dtype or dtype
        dtype = torch.float32 if dtype == torch.float64 else dtype
    name = stored_name(str(dtype).removeprefix("torch."))
    parts = {
        part: Tensor(name if name in part.dtypes else part.dtypes[0], part.shape) for part in written.stored_as(spec)
    }
    return NewTensor(spec, sources, None, dtype, written, parts)
