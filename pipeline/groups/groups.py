"""Weight groups: what travels through the line as one message, as byte ranges of files."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from actors.core.message import GroupKey
from actors.core.order import layer_parts
from pipeline.checkpoints.checkpoint import Checkpoint, first_faults
from pipeline.checkpoints.leftovers import leftovers
from pipeline.errors import CheckpointError, ConfigError
from pipeline.formats.dense import Dense, all_dense
from pipeline.formats.matrix import Format, FormatOf, StoredMatrix
from pipeline.formats.parts import EMBED_KEY, EXPERT, HEAD, head_slice, kind_of
from pipeline.formats.tensors import Stacked, TensorRange, TensorSpec
from pipeline.groups.stored import faults, hints, spare_parts, stored_names

if TYPE_CHECKING:
    import torch

ROWS_PER_STEP = 8
"""Head slices begin at multiples of this many rows, so that their logits stay aligned for matrix kernels."""

Specs = Mapping[GroupKey, Sequence[TensorSpec]]


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """What is read, uploaded and computed as one: half a layer, an expert of it, or a slice of the head.

    `tensors` are all that it holds, those that make up its `matrices` among them; the others are `vectors`.
    """

    layer: int
    name: str
    tensors: tuple[TensorRange, ...]
    matrices: tuple[StoredMatrix, ...] = ()

    @property
    def vectors(self) -> tuple[TensorRange, ...]:
        """Norms and biases."""
        parts = {tensor.short for matrix in self.matrices for tensor in matrix.tensors}
        return tuple(tensor for tensor in self.tensors if tensor.short not in parts)

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

    `experts` move when they are needed, and lie in order of layer and index. `ignored` names what the checkpoint holds
    beyond that, and what the next token does not depend on. `formats` has the matrices, whole, by the name of their
    format.
    """

    groups: tuple[WeightGroup, ...]
    embed: StoredMatrix
    ignored: tuple[str, ...]
    formats: Mapping[str, Sequence[StoredMatrix]]
    experts: tuple[WeightGroup, ...] = ()

    @property
    def dtype(self) -> "torch.dtype":
        """The dtype of the first matrix."""
        return self.groups[0].matrices[0].dtype


def find_groups(specs: Specs, checkpoint: Checkpoint, format_of: FormatOf = all_dense) -> tuple[WeightGroup, ...]:
    """Find each tensor of `specs` in the checkpoint, and make them groups in their order.

    Raises CheckpointError, naming every tensor that is missing, stored twice, or of a wrong shape or dtype, and
    ConfigError as `plan_groups`.
    """
    found = _find(specs, checkpoint, format_of)
    if wrong := _faults(found, checkpoint):
        raise CheckpointError(first_faults(wrong))
    return _make_groups(found, checkpoint)


def plan_groups(
    specs: Specs, checkpoint: Checkpoint, format_of: FormatOf = all_dense, drafting_layers: int = 0
) -> WeightGroups:
    """Find each tensor of `specs` in the checkpoint, a matrix as its format stores it: layer by layer, then the head.

    The output matrix of the head is cut into row slices, in turn of about the size of each part of a layer; the first
    carries the final norm too. Experts, if `specs` has them, are kept apart from the other groups. So many layers
    behind the last may be there, which draft, and are ignored.

    Raises:
        CheckpointError: naming every tensor that is missing, that is stored twice, whose shape or dtype is wrong, with
            need and have, or that the model would say something else without.
        ConfigError: a matrix cannot be stored in its format.
    """
    head_layer = max(layer for layer, _ in specs)
    stored = _find(specs, checkpoint, format_of)
    ignored = _check(stored, head_layer, checkpoint, drafting_layers)
    found = {group.key: group for group in _make_groups(stored, checkpoint)}
    formats: defaultdict[str, list[StoredMatrix]] = defaultdict(list)
    for key, group in found.items():
        for name, matrix in zip((one.format.name for one in stored[key] if one.format), group.matrices, strict=True):
            formats[name].append(matrix)
    embed, head = found.pop(EMBED_KEY), found.pop((head_layer, HEAD))
    experts = tuple(found.pop(key) for key in [*found] if kind_of(key[1]) == EXPERT)
    groups = [*found.values()]
    parts = layer_parts([*found])
    sizes = [max(group.needed_bytes for group in groups if group.name == part) for part in parts]
    (output,) = head.matrices
    for index, rows in enumerate(_row_slices(output, sizes)):
        tensors = (*head.vectors, *rows.tensors) if index == 0 else rows.tensors
        groups.append(WeightGroup(head_layer, head_slice(index), tensors, (rows,)))
    return WeightGroups(tuple(groups), _table(embed), ignored, formats, experts)


@dataclass(frozen=True, slots=True)
class _Found:
    """A tensor of the model, its format if it is a matrix, and the names under which each of its parts is there.

    Where these are stacks, the spec is that of an item of them, of which the tensor is a part as `stacked` says.
    """

    spec: TensorSpec
    format: Format | None
    names: Mapping[TensorSpec, Sequence[str]]
    stacked: Stacked | None = None

    @property
    def is_there(self) -> bool:
        """Whether anything of it is."""
        return any(self.names.values())

    def ranges(self, checkpoint: Checkpoint) -> tuple[TensorRange, ...]:
        """Its parts, or those of the item that it is in."""
        parts = tuple(_range(part, names[0], checkpoint) for part, names in self.names.items())
        return parts if self.stacked is None else tuple(part.item(self.stacked.index) for part in parts)

    def matrix(self, parts: tuple[TensorRange, ...]) -> StoredMatrix | None:
        """What multiplies, over its `ranges`, if it is a matrix."""
        whole = None if self.format is None else self.format.stored(self.spec, parts)
        if whole is None or self.stacked is None or self.stacked.parts == 1:
            return whole
        rows = whole.rows // self.stacked.parts
        return whole.slice(self.stacked.part * rows, (self.stacked.part + 1) * rows)


def _find(specs: Specs, checkpoint: Checkpoint, format_of: FormatOf) -> dict[GroupKey, list[_Found]]:
    return {key: _find_group(group, checkpoint, format_of) for key, group in specs.items()}


def _find_group(specs: Sequence[TensorSpec], checkpoint: Checkpoint, format_of: FormatOf) -> list[_Found]:
    """One by one, or stacked, if that is how anything of the group is there."""
    found = [_find_tensor(spec, checkpoint, format_of) for spec in specs]
    if any(spec.stacked is None for spec in specs) or any(one.is_there for one in found):
        return found
    stacked = [_find_stacked(spec, spec.stacked, checkpoint, format_of) for spec in specs if spec.stacked]
    return stacked if any(one.is_there for one in stacked) else found


def _find_tensor(spec: TensorSpec, checkpoint: Checkpoint, format_of: FormatOf) -> _Found:
    """The first of its names that has anything there decides the format: a head may be stored, or be the embedding."""
    for name in (spec.names or (spec.name,)) if spec.is_matrix else ():
        named = replace(spec, name=name, names=())
        found = _find_matrix(named, format_of, checkpoint)
        if found.is_there or not spec.names:
            return found
    return _Found(spec, None, {spec: stored_names(spec, checkpoint)})


def _find_stacked(spec: TensorSpec, stacked: Stacked, checkpoint: Checkpoint, format_of: FormatOf) -> _Found:
    """The parts of the stack that it is in."""
    rows, *columns = spec.shape
    item = replace(spec, name=stacked.name, shape=(rows * stacked.parts, *columns), stacked=None)
    if not spec.is_matrix:
        stack = item.each(stacked.count)
        return _Found(item, None, {stack: stored_names(stack, checkpoint)}, stacked)
    return _find_matrix(item, format_of, checkpoint, stacked)


def _find_matrix(
    spec: TensorSpec, format_of: FormatOf, checkpoint: Checkpoint, stacked: Stacked | None = None
) -> _Found:
    try:
        chosen = format_of(spec.name)
        if stacked is not None and stacked.transposed and isinstance(chosen, Dense):
            chosen = Dense(transposed=True)
        parts = chosen.stored_as(spec)
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.folder}: {error}") from error
    if stacked is not None:
        parts = tuple(part.each(stacked.count) for part in parts)
    return _Found(spec, chosen, {part: stored_names(part, checkpoint) for part in parts}, stacked)


def _make_groups(found: Mapping[GroupKey, Sequence[_Found]], checkpoint: Checkpoint) -> tuple[WeightGroup, ...]:
    groups = []
    for key, tensors in found.items():
        ranges: list[TensorRange] = []
        matrices: list[StoredMatrix] = []
        for one in tensors:
            parts = one.ranges(checkpoint)
            if (matrix := one.matrix(parts)) is not None:
                matrices.append(matrix)
                parts = matrix.tensors
            ranges.extend(parts)
        groups.append(WeightGroup(*key, tuple(ranges), tuple(matrices)))
    return tuple(groups)


def _faults(found: Mapping[GroupKey, Sequence[_Found]], checkpoint: Checkpoint) -> list[str]:
    """What keeps the model from being computed, each said once: a tied matrix or a stack is looked for more often."""
    every = itertools.chain.from_iterable(faults(part, names, checkpoint) for part, names in _names(found).items())
    return [*dict.fromkeys(every)]


def _names(found: Mapping[GroupKey, Sequence[_Found]]) -> dict[TensorSpec, Sequence[str]]:
    """The names of all parts of all tensors."""
    return {part: names for group in found.values() for one in group for part, names in one.names.items()}


def _check(
    found: Mapping[GroupKey, Sequence[_Found]], layers: int, checkpoint: Checkpoint, drafting_layers: int
) -> tuple[str, ...]:
    """What nothing computes with, and may be ignored. Raises CheckpointError with all that is wrong."""
    stored, wrong = _names(found), _faults(found, checkpoint)
    used = set(itertools.chain.from_iterable(stored.values()))
    matrices = (one for group in found.values() for one in group if one.format is not None)
    quantised = {one.spec.name for one in matrices if not isinstance(one.format, Dense)}
    unused = checkpoint.tensors.keys() - used
    unused.difference_update([*spare_parts(quantised, unused, checkpoint)])
    left_out, ignored = leftovers(unused, layers, checkpoint.tensors, drafting_layers)
    if absent := next((part for part, names in stored.items() if not names), None):
        wrong = [*hints(absent, checkpoint), *wrong]
    if wrong or left_out:
        raise CheckpointError(first_faults(wrong + left_out))
    return ignored


def _table(embed: WeightGroup) -> StoredMatrix:
    """The embedding, of which single rows are fetched. Raises CheckpointError where they do not lie apart."""
    (table,) = embed.matrices
    shared = [one for one in table.tensors if one.shape[:1] != (table.rows,)]
    if shared or table.row_step != 1:
        one = [*shared, *table.tensors][0]
        raise CheckpointError(
            f"{one.file}: tensor {one.name!r}: need an embedding whose rows are stored one by one, have a part of "
            f"shape {list(one.shape)} for {table.rows} rows; use a checkpoint whose embedding is not quantised"
        )
    return table


def _range(spec: TensorSpec, name: str, checkpoint: Checkpoint) -> TensorRange:
    entry = checkpoint.tensors[name]
    content = checkpoint.content(name) if spec.is_header else b""
    return TensorRange(spec.short, name, entry.file, entry.start, entry.length, entry.shape, entry.dtype, content)


def _row_slices(matrix: StoredMatrix, most_bytes: Sequence[int]) -> Iterator[StoredMatrix]:
    """Cut `matrix` into as few slices of its rows as keep each at about `most_bytes`, which take turns.

    One whose rows do not lie together stays whole.
    """
    if matrix.row_step is None:
        yield matrix
        return
    length = sum(tensor.length for tensor in matrix.tensors)
    ends = [0]
    for nbytes in itertools.cycle(most_bytes):
        ends.append(ends[-1] + nbytes)
        if ends[-1] >= length:
            break
    step_rows = math.lcm(ROWS_PER_STEP, matrix.row_step)
    steps = -(-matrix.rows // step_rows)
    edges = sorted({min(steps * end // ends[-1] * step_rows, matrix.rows) for end in ends})
    for first, last in itertools.pairwise(edges):
        yield matrix.slice(first, last)
