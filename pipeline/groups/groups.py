"""Weight groups: what travels through the line as one message, as byte ranges of files."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from actors.core.message import GroupKey
from actors.core.order import layer_parts
from pipeline.checkpoints.checkpoint import Checkpoint, first_faults
from pipeline.checkpoints.leftovers import leftovers
from pipeline.errors import CheckpointError
from pipeline.formats.dense import Dense, all_dense
from pipeline.formats.matrix import FormatOf, StoredMatrix
from pipeline.formats.parts import EMBED_KEY, EXPERT, HEAD, TABLE, head_slice, kind_of
from pipeline.formats.tensors import TensorRange, TensorSpec
from pipeline.groups.found import FoundTensor, find_tensors
from pipeline.groups.stored import faults, hints, spare_parts
from pipeline.system.collecting import collected_later

if TYPE_CHECKING:
    import torch

ROWS_PER_STEP = 8
"""Head slices begin at multiples of this many rows, so that their logits stay aligned for matrix kernels."""
GROUPS_AT_ONCE = 64
"""Of so many what must be read when a model is opened is asked of the disk before any of it is waited for."""

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

    @property
    def parameters(self) -> int:
        """How many numbers its matrices have, however stored: what a token costs follows from it."""
        return sum(one.rows * one.columns for one in self.matrices)


@dataclass(frozen=True, slots=True)
class WeightGroups:
    """All groups in compute order, and the embedding table, of which only rows are fetched.

    `experts` move when they are needed, and lie in order of layer and index. `tables` say which of them a token uses,
    where that follows from its id. `ignored` names what the checkpoint holds beyond that, and what the next token does
    not depend on. `formats` has the matrices, whole, by the name of their format.
    """

    groups: tuple[WeightGroup, ...]
    embed: StoredMatrix
    ignored: tuple[str, ...]
    formats: Mapping[str, Sequence[StoredMatrix]]
    experts: tuple[WeightGroup, ...] = ()
    tables: tuple[WeightGroup, ...] = ()

    @property
    def dtype(self) -> "torch.dtype":
        """The dtype of the first matrix."""
        return self.groups[0].matrices[0].dtype

    @property
    def layer_bytes(self) -> list[int]:
        """The bytes of each layer with its experts; the last are those of the head."""
        found = Counter[int]()
        for group in (*self.groups, *self.experts):
            found[group.layer] += group.needed_bytes
        return [found[layer] for layer in range(1 + self.groups[-1].layer)]

    def of_layers(self, layers: Collection[int]) -> "WeightGroups":
        """Those of some layers, of which the one behind the last is the head."""
        every = self.groups, self.experts, self.tables
        groups, experts, tables = (tuple(one for one in some if one.layer in layers) for some in every)
        return replace(self, groups=groups, experts=experts, tables=tables)


@collected_later()
def find_groups(specs: Specs, checkpoint: Checkpoint, format_of: FormatOf = all_dense) -> tuple[WeightGroup, ...]:
    """Find each tensor of `specs` in the checkpoint, and make them groups in their order.

    Raises CheckpointError, naming every tensor that is missing, stored twice, or of a wrong shape or dtype, and
    ConfigError as `plan_groups`.
    """
    found = _Search(specs, checkpoint, format_of)
    if found.wrong:
        raise CheckpointError(first_faults([*found.wrong]))
    return tuple(found.groups.values())


@collected_later()
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
    search = _Search(specs, checkpoint, format_of)
    ignored, found = _check(search, head_layer, checkpoint, drafting_layers), search.groups
    embed, head = found.pop(EMBED_KEY), found.pop((head_layer, HEAD))
    experts, tables = (tuple(found.pop(key) for key in [*found] if kind_of(key[1]) == kind) for kind in (EXPERT, TABLE))
    groups = [*found.values()]
    parts = layer_parts([*found])
    sizes = [max(group.needed_bytes for group in groups if group.name == part) for part in parts]
    (output,) = head.matrices
    for index, rows in enumerate(_row_slices(output, sizes)):
        tensors = (*head.vectors, *rows.tensors) if index == 0 else rows.tensors
        groups.append(WeightGroup(head_layer, head_slice(index), tensors, (rows,)))
    return WeightGroups(tuple(groups), _table(embed), ignored, search.formats, experts, tables)


class _Search:
    """Makes groups of what it finds, for as long as nothing is wrong.

    A model may have 100,000 matrices: of what is only needed on the way no more than that of some groups is there.

    Attributes:
        groups: by key, in the order of the specs.
        formats: the matrices by the name of their format.
        wrong: faults, each said once: a tied matrix or a stack is looked for more often.
        absent: the first tensor that is missing.
        used: the names of what was found.
        quantised: the names of quantised matrices.
    """

    def __init__(self, specs: Specs, checkpoint: Checkpoint, format_of: FormatOf) -> None:
        self.groups: dict[GroupKey, WeightGroup] = {}
        self.formats: defaultdict[str, list[StoredMatrix]] = defaultdict(list)
        self.wrong: dict[str, None] = {}
        self.absent: TensorSpec | None = None
        self.used: set[str] = set()
        self.quantised: set[str] = set()
        self._checkpoint = checkpoint
        keys = [*specs]
        for first in range(0, len(keys), GROUPS_AT_ONCE):
            some = {
                key: find_tensors(specs[key], checkpoint, format_of) for key in keys[first : first + GROUPS_AT_ONCE]
            }
            self._note(itertools.chain.from_iterable(some.values()))
            for key, found in some.items() if not self.wrong else ():
                try:
                    self._make(key, found)
                except CheckpointError as error:
                    self.wrong[str(error)] = None

    def _note(self, found: Iterable[FoundTensor]) -> None:
        """What is there, and what is wrong; of what will be read now the disk is told ahead."""
        for one in found:
            if one.format is not None and not isinstance(one.format, Dense):
                self.quantised.add(one.spec.name)
            for part, names in one.parts:
                self.used.update(names)
                self.wrong.update(dict.fromkeys(faults(part, names, self._checkpoint)))
                if not names:
                    self.absent = self.absent or part
                elif part.is_header:
                    self._checkpoint.expect(names[0])

    def _make(self, key: GroupKey, found: Sequence[FoundTensor]) -> None:
        ranges: list[TensorRange] = []
        matrices: list[StoredMatrix] = []
        for one in found:
            parts = one.ranges(self._checkpoint)
            if (matrix := one.matrix(parts)) is not None and one.format is not None:
                self.formats[one.format.name].append(matrix)
                cut = one.cut(matrix)
                matrices.extend(cut)
                parts = tuple(part for block in cut for part in block.tensors)
            ranges.extend(parts)
        self.groups[key] = WeightGroup(*key, tuple(ranges), tuple(matrices))


def _check(search: _Search, layers: int, checkpoint: Checkpoint, drafting_layers: int) -> tuple[str, ...]:
    """What nothing computes with, and may be ignored. Raises CheckpointError with all that is wrong."""
    unused = checkpoint.tensors.keys() - search.used
    unused.difference_update([*spare_parts(search.quantised, unused, checkpoint)])
    left_out, ignored = leftovers(unused, layers, checkpoint.tensors, drafting_layers)
    wrong = [*search.wrong, *left_out]
    if search.absent is not None:
        wrong = [*hints(search.absent, checkpoint), *wrong]
    if wrong:
        raise CheckpointError(first_faults(wrong))
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
