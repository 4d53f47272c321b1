"""Weight groups: what travels through the line as one message, as byte ranges of files."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.core.message import GroupKey
from actors.core.order import layer_parts
from pipeline.checkpoints.checkpoint import Checkpoint, first_faults
from pipeline.checkpoints.leftovers import leftovers
from pipeline.errors import CheckpointError
from pipeline.formats.dense import Dense
from pipeline.formats.matrix import StoredMatrix
from pipeline.formats.parts import EMBED_KEY, HEAD, head_slice
from pipeline.formats.tensors import TensorRange, TensorSpec
from pipeline.groups.stored import faults, hints, stored_names

if TYPE_CHECKING:
    import torch

ROWS_PER_STEP = 8
"""Head slices begin at multiples of this many rows, so that their logits stay aligned for matrix kernels."""

Specs = Mapping[GroupKey, Sequence[TensorSpec]]


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """What is read, uploaded and computed as one: half a layer, or a slice of the head.

    `tensors` are all that it holds, those that make up its `matrices` among them.
    """

    layer: int
    name: str
    tensors: tuple[TensorRange, ...]
    matrices: tuple[StoredMatrix, ...] = ()

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
    """All groups in compute order, and the embedding table, of which only rows are fetched.

    `ignored` names what the checkpoint holds beyond that, and what the next token does not depend on.
    """

    groups: tuple[WeightGroup, ...]
    embed: StoredMatrix
    ignored: tuple[str, ...]

    @property
    def dtype(self) -> "torch.dtype":
        """The dtype of the first matrix."""
        return self.groups[0].matrices[0].dtype


def find_groups(specs: Specs, checkpoint: Checkpoint) -> tuple[WeightGroup, ...]:
    """Find each tensor of `specs` in the checkpoint, and make them groups in their order.

    Raises CheckpointError, naming every tensor that is missing, stored twice, or of a wrong shape or dtype.
    """
    stored = _stored(specs, checkpoint)
    if found := [fault for spec, names in stored.items() for fault in faults(spec, names, checkpoint)]:
        raise CheckpointError(first_faults(found))
    return _make_groups(specs, stored, checkpoint)


def plan_groups(specs: Specs, checkpoint: Checkpoint) -> WeightGroups:
    """Find each tensor of `specs` in the checkpoint: layer by layer, then the head.

    The output matrix of the head is cut into row slices, in turn of about the size of each part of a layer; the first
    carries the final norm too.

    Raises:
        CheckpointError: naming every tensor that is missing, that is stored twice, whose shape or dtype is wrong, with
            need and have, or that the model would say something else without.
    """
    head_layer = max(layer for layer, _ in specs)
    stored = _stored(specs, checkpoint)
    ignored = _check(stored, head_layer, checkpoint)
    found = {group.key: group for group in _make_groups(specs, stored, checkpoint)}
    embed, head = found.pop(EMBED_KEY), found.pop((head_layer, HEAD))
    groups = [*found.values()]
    parts = layer_parts([*found])
    sizes = [max(group.needed_bytes for group in groups if group.name == part) for part in parts]
    (output,) = head.matrices
    norm = [tensor for tensor in head.tensors if tensor not in output.tensors]
    for index, rows in enumerate(_row_slices(output, sizes)):
        tensors = (*norm, *rows.tensors) if index == 0 else rows.tensors
        groups.append(WeightGroup(head_layer, head_slice(index), tensors, (rows,)))
    return WeightGroups(tuple(groups), embed.matrices[0], ignored)


def _stored_as(spec: TensorSpec) -> tuple[TensorSpec, ...]:
    """The format of each matrix is chosen here and in `_make_groups`, nowhere else."""
    return Dense.stored_as(spec) if spec.is_matrix else (spec,)


def _stored(specs: Specs, checkpoint: Checkpoint) -> dict[TensorSpec, Sequence[str]]:
    """The names under which the checkpoint holds what each tensor is stored as."""
    tensors = itertools.chain.from_iterable(specs.values())
    return {one: stored_names(one, checkpoint) for spec in tensors for one in _stored_as(spec)}


def _make_groups(
    specs: Specs, stored: Mapping[TensorSpec, Sequence[str]], checkpoint: Checkpoint
) -> tuple[WeightGroup, ...]:
    groups = []
    for key, group in specs.items():
        ranges = {spec: tuple(_range(one, stored[one][0], checkpoint) for one in _stored_as(spec)) for spec in group}
        matrices = tuple(Dense(ranges[spec]) for spec in group if spec.is_matrix)
        groups.append(WeightGroup(*key, tuple(itertools.chain.from_iterable(ranges.values())), matrices))
    return tuple(groups)


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


def _row_slices(matrix: StoredMatrix, most_bytes: Sequence[int]) -> Iterator[StoredMatrix]:
    """Cut `matrix` into as few slices of its rows as keep each at about `most_bytes`, which take turns."""
    length = sum(tensor.length for tensor in matrix.tensors)
    ends = [0]
    for nbytes in itertools.cycle(most_bytes):
        ends.append(ends[-1] + nbytes)
        if ends[-1] >= length:
            break
    steps = -(-matrix.rows // ROWS_PER_STEP)
    edges = sorted({min(steps * end // ends[-1] * ROWS_PER_STEP, matrix.rows) for end in ends})
    for first, last in itertools.pairwise(edges):
        yield matrix.slice(first, last)
