"""Weight groups: what travels through the line as one message, as byte ranges of files."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from actors.core.message import GroupKey
from actors.core.order import layer_parts
from pipeline.checkpoints.checkpoint import Checkpoint, first_faults
from pipeline.checkpoints.leftovers import leftovers
from pipeline.errors import CheckpointError
from pipeline.formats.parts import EMBED_KEY, HEAD, head_slice
from pipeline.formats.tensors import TensorRange, TensorSpec
from pipeline.groups.stored import faults, hints, stored_names

ROWS_PER_STEP = 8
"""Head slices begin at multiples of this many rows, so that their logits stay aligned for matrix kernels."""

Specs = Mapping[GroupKey, Sequence[TensorSpec]]


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """What is read, uploaded and computed as one: half a layer, or a slice of the head."""

    layer: int
    name: str
    tensors: tuple[TensorRange, ...]

    @property
    def key(self) -> GroupKey:
        """Layer and part, by which all rooms know it."""
        return self.layer, self.name

    @property
    def needed_bytes(self) -> int:
        """The bytes of its tensors, without what is read around them."""
        return sum(tensor.length for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class WeightGroups:
    """All groups in compute order; the embedding table, of which only rows are fetched; the dtype of the first matrix.

    `ignored` names what the checkpoint holds beyond that, and what the next token does not depend on.
    """

    groups: tuple[WeightGroup, ...]
    embed: TensorRange
    dtype: str
    ignored: tuple[str, ...]


def plan_groups(specs: Specs, checkpoint: Checkpoint) -> WeightGroups:
    """Find each tensor of `specs` in the checkpoint: layer by layer, then the head.

    The output matrix of the head is cut into row slices, in turn of about the size of each part of a layer; the first
    carries the final norm too.

    Raises:
        CheckpointError: naming every tensor that is missing, that is stored twice, whose shape or dtype is wrong, with
            need and have, or that the model would say something else without.
    """
    head_layer = max(layer for layer, _ in specs)
    stored = {spec: stored_names(spec, checkpoint) for group in specs.values() for spec in group}
    ignored = _check(stored, head_layer, checkpoint)
    ranges = {key: tuple(_range(spec, stored[spec][0], checkpoint) for spec in group) for key, group in specs.items()}
    (embed,), (norm, output) = ranges.pop(EMBED_KEY), ranges.pop((head_layer, HEAD))
    groups = [WeightGroup(*key, tensors) for key, tensors in ranges.items()]
    parts = layer_parts([*ranges])
    sizes = [max(group.needed_bytes for group in groups if group.name == part) for part in parts]
    for index, rows in enumerate(_row_slices(output, sizes)):
        tensors = (norm, rows) if index == 0 else (rows,)
        groups.append(WeightGroup(head_layer, head_slice(index), tensors))
    return WeightGroups(tuple(groups), embed, _first_matrix(ranges.values()).dtype, ignored)


def _check(stored: Mapping[TensorSpec, Sequence[str]], layers: int, checkpoint: Checkpoint) -> tuple[str, ...]:
    """What nothing computes with, and may be ignored. Raises CheckpointError with all that is wrong."""
    found = [fault for spec, names in stored.items() for fault in faults(spec, names, checkpoint)]
    used = set(itertools.chain.from_iterable(stored.values()))
    left_out, ignored = leftovers(checkpoint.tensors.keys() - used, layers, checkpoint.tensors)
    if absent := next((spec for spec, names in stored.items() if not names), None):
        found = [*hints(absent, checkpoint), *found]
    if found or left_out:
        raise CheckpointError(first_faults(found + left_out))
    return ignored


def _range(spec: TensorSpec, name: str, checkpoint: Checkpoint) -> TensorRange:
    entry = checkpoint.tensors[name]
    return TensorRange(spec.short, name, entry.file, entry.start, entry.length, entry.shape, entry.dtype)


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


def _first_matrix(groups: Iterable[Sequence[TensorRange]]) -> TensorRange:
    return next(tensor for group in groups for tensor in group if len(tensor.shape) == 2)
