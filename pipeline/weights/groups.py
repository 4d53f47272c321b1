"""Weight groups: what travels through the line as one message, as byte ranges of files."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.models.families import TensorSpec
from pipeline.weights.checkpoint import Checkpoint, first_faults
from pipeline.weights.header import ITEM_BITS, TensorEntry
from pipeline.weights.leftovers import leftovers

EMBED_LAYER = -1
SUPPORTED_DTYPES = ("F32", "F16", "BF16")
ROWS_PER_STEP = 8
"""Head slices begin at multiples of this many rows, so that their logits stay aligned for matrix kernels."""

Specs = Mapping[tuple[int, str], Sequence[TensorSpec]]


@dataclass(frozen=True, slots=True)
class TensorRange:
    """The bytes of one tensor, or of some of its rows, in one file; `short` is its name inside the group."""

    short: str
    name: str
    file: Path
    start: int
    length: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """What is read, uploaded and computed as one: half a layer, or a slice of the head."""

    layer: int
    name: str
    tensors: tuple[TensorRange, ...]

    @property
    def needed_bytes(self) -> int:
        """The bytes of its tensors, without what is read around them."""
        return sum(tensor.length for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class WeightGroups:
    """All groups in compute order; the embedding table, of which only rows are fetched; the dtype of the matrices.

    `ignored` names what the checkpoint holds beyond that, and what the next token does not depend on.
    """

    groups: tuple[WeightGroup, ...]
    embed: TensorRange
    dtype: str
    ignored: tuple[str, ...]


def plan_groups(specs: Specs, checkpoint: Checkpoint) -> WeightGroups:
    """Find each tensor of `specs` in the checkpoint: attn, ffn, attn, ffn, ..., head.0 .. head.k.

    The output matrix of the head is cut into row slices, in turn of about an attn and an ffn group's size; head.0
    carries the final norm too.

    Raises:
        CheckpointError: naming every tensor that is missing, whose shape or dtype is wrong, with need and have, or that
            the model would say something else without.
    """
    specs = {key: [_as_stored(spec, checkpoint) for spec in group] for key, group in specs.items()}
    wanted = [spec for group in specs.values() for spec in group]
    head_layer = max(layer for layer, _ in specs)
    faults = [fault for spec in wanted for fault in _faults(spec, checkpoint)]
    left_out, ignored = leftovers(checkpoint.tensors.keys() - {spec.name for spec in wanted}, head_layer, checkpoint)
    if faults or left_out:
        raise CheckpointError(first_faults(faults + left_out))
    ranges = {key: tuple(_range(spec, checkpoint.tensors[spec.name]) for spec in group) for key, group in specs.items()}
    groups = [WeightGroup(layer, half, ranges[layer, half]) for layer in range(head_layer) for half in ("attn", "ffn")]
    sizes = [max(group.needed_bytes for group in groups if group.name == half) for half in ("attn", "ffn")]
    norm, output = ranges[head_layer, "head"]
    for index, rows in enumerate(_row_slices(output, sizes)):
        tensors = (norm, rows) if index == 0 else (rows,)
        groups.append(WeightGroup(head_layer, f"head.{index}", tensors))
    (embed,) = ranges[EMBED_LAYER, "embed"]
    return WeightGroups(tuple(groups), embed, _matrix_dtype(ranges.values()), ignored)


def _as_stored(spec: TensorSpec, checkpoint: Checkpoint) -> TensorSpec:
    """Under the name that the checkpoint has for it."""
    return replace(spec, name=next((name for name in spec.names if name in checkpoint.tensors), spec.name))


def _faults(spec: TensorSpec, checkpoint: Checkpoint) -> Iterator[str]:
    entry = checkpoint.tensors.get(spec.name)
    if entry is None:
        yield f"{checkpoint.folder}: tensor {spec.name!r} is missing: need shape {list(spec.shape)}"
        return
    what = f"{entry.file}: tensor {spec.name!r}"
    if entry.shape != tuple(spec.shape):
        yield f"{what}: need shape {list(spec.shape)}, have {list(entry.shape)}"
    if entry.dtype not in SUPPORTED_DTYPES:
        yield f"{what}: need dtype {', '.join(SUPPORTED_DTYPES)}, have {entry.dtype}"
    elif entry.start % (ITEM_BITS[entry.dtype] // 8):
        yield (
            f"{what}: begins at byte {entry.start}, not at a multiple of its {entry.dtype} items, so it cannot be used "
            "in place; write the checkpoint again with a newer safetensors"
        )


def _range(spec: TensorSpec, entry: TensorEntry) -> TensorRange:
    return TensorRange(spec.short, spec.name, entry.file, entry.start, entry.length, entry.shape, entry.dtype)


def _row_slices(matrix: TensorRange, most_bytes: Sequence[int]) -> Iterator[TensorRange]:
    """Cut `matrix` [rows, columns] into as few slices as keep each at about `most_bytes`, which take turns."""
    rows, columns = matrix.shape
    ends = [0]
    for nbytes in itertools.cycle(most_bytes):
        ends.append(ends[-1] + nbytes)
        if ends[-1] >= matrix.length:
            break
    steps = -(-rows // ROWS_PER_STEP)
    edges = sorted({min(steps * end // ends[-1] * ROWS_PER_STEP, rows) for end in ends})
    row_bytes = matrix.length // rows
    for first, last in itertools.pairwise(edges):
        start, length = matrix.start + first * row_bytes, (last - first) * row_bytes
        yield TensorRange(matrix.short, matrix.name, matrix.file, start, length, (last - first, columns), matrix.dtype)


def _matrix_dtype(groups: Iterable[Sequence[TensorRange]]) -> str:
    matrices = [tensor for group in groups for tensor in group if len(tensor.shape) == 2]
    first = matrices[0]
    for tensor in matrices:
        if tensor.dtype != first.dtype:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name!r}: need {first.dtype} like {first.name!r} in {first.file}, "
                f"have {tensor.dtype}"
            )
    return first.dtype
