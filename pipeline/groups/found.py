"""Where a checkpoint holds each tensor that the model needs, and in which format a matrix is there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.errors import CheckpointError, ConfigError
from pipeline.formats.by_dtype import ByDtype
from pipeline.formats.dense import Dense
from pipeline.formats.matrix import Format, FormatOf, StoredMatrix
from pipeline.formats.stacks import format_of_items, item_spec, stack_parts
from pipeline.formats.tensors import WEIGHT_DTYPES, Stacked, TensorRange, TensorSpec
from pipeline.groups.stored import stored_names


@dataclass(frozen=True, slots=True)
class FoundTensor:
    """A tensor of the model, its format if it is a matrix, and each of its parts, with the names that it has there.

    Where these are stacks, the spec is that of an item of them, of which the tensor is a part as `stacked` says.
    """

    spec: TensorSpec
    format: Format | None
    parts: tuple[tuple[TensorSpec, Sequence[str]], ...]
    stacked: Stacked | None = None

    @property
    def is_there(self) -> bool:
        """Whether anything of it is."""
        return any(names for _, names in self.parts)

    def ranges(self, checkpoint: Checkpoint) -> tuple[TensorRange, ...]:
        """Its parts, or those of the item that it is in."""
        parts = tuple(_range(part, names[0], checkpoint) for part, names in self.parts)
        return parts if self.stacked is None else tuple(part.item(self.stacked.index) for part in parts)

    def matrix(self, parts: tuple[TensorRange, ...]) -> StoredMatrix | None:
        """What multiplies, over its `ranges`, if it is a matrix. Raises CheckpointError for a wrong header."""
        whole = None if self.format is None else self.format.stored(self.spec, parts)
        if whole is None or self.stacked is None or self.stacked.parts == 1:
            return whole
        rows = whole.rows // self.stacked.parts
        if whole.row_step is None or rows % whole.row_step:
            where, step = parts[0], whole.row_step or "all"
            raise CheckpointError(
                f"{where.file}: tensor {where.name!r}: need gate and up that can be cut apart, at a multiple of "
                f"{step} rows, have {rows} rows each; use a checkpoint whose experts are stored one by one"
            )
        return whole.slice(self.stacked.part * rows, (self.stacked.part + 1) * rows)

    def cut(self, matrix: StoredMatrix) -> tuple[StoredMatrix, ...]:
        """The `matrix` that it is, or its diagonal blocks. Raises CheckpointError where it cannot be cut there."""
        count, short = self.spec.diagonal_blocks, self.spec.short
        if count == 1 or self.format is None:
            return (matrix,)
        rows = matrix.rows // count
        if matrix.row_step is None or rows % matrix.row_step:
            where, step = matrix.tensors[0], matrix.row_step or "all"
            raise CheckpointError(
                f"{where.file}: tensor {where.name!r}: need a matrix that can be cut into {count}, at a multiple of "
                f"{step} rows, have {rows} rows each; use a checkpoint that stores it in another format"
            )
        cut = []
        for index in range(count):
            named = f"{short}.{index}"
            parts = tuple(replace(part, short=part.short.replace(short, named, 1)) for part in matrix.tensors)
            block = self.format.stored(replace(self.spec, short=named), parts)
            cut.append(block.slice(index * rows, (index + 1) * rows))
        return tuple(cut)


def find_tensors(specs: Sequence[TensorSpec], checkpoint: Checkpoint, format_of: FormatOf) -> list[FoundTensor]:
    """The tensors of a group one by one, or stacked, if that is how anything of it is there, or usual.

    Raises ConfigError where a matrix cannot be stored in its format.
    """
    found = [_find_tensor(spec, checkpoint, format_of) for spec in specs]
    if any(one.is_there for one in found):
        return found
    stacked = [_find_stacked(spec, spec.stacked, checkpoint, format_of) for spec in specs if spec.stacked]
    is_usual = any(spec.stacked.transposed for spec in specs if spec.stacked)
    return stacked if is_usual or any(one.is_there for one in stacked) else found


def _find_tensor(spec: TensorSpec, checkpoint: Checkpoint, format_of: FormatOf) -> FoundTensor:
    """The first of its names that has anything there decides the format: a head may be stored, or be the embedding."""
    for name in (spec.names or (spec.name,)) if spec.is_matrix else ():
        named = replace(spec, name=name, names=()) if spec.names else spec
        found = _find_matrix(named, checkpoint, format_of)
        if found.is_there or not spec.names:
            return found
    return FoundTensor(spec, None, _named((spec,), checkpoint))


def _find_stacked(spec: TensorSpec, stack: Stacked, checkpoint: Checkpoint, format_of: FormatOf) -> FoundTensor:
    """The parts of the stack that it is in."""
    item = item_spec(spec, stack)
    if spec.is_matrix:
        return _find_matrix(item, checkpoint, format_of, stack)
    return FoundTensor(item, None, _named(stack_parts(item, stack, None), checkpoint), stack)


def _find_matrix(
    spec: TensorSpec, checkpoint: Checkpoint, format_of: FormatOf, stack: Stacked | None = None
) -> FoundTensor:
    """Some who quantise all else leave experts as they are, and do not say so (findings/nf4_leaves_experts.sh)."""
    try:
        dtypes = {checkpoint.tensors[name].dtype for name in stored_names(spec, checkpoint)}
        left = spec.stacked is not None and bool(dtypes & WEIGHT_DTYPES.keys())
        chosen = Dense() if left else format_of(spec.name)
        chosen = chosen.of(dtypes) if isinstance(chosen, ByDtype) else chosen
        if stack is None:
            parts = chosen.stored_as(spec)
        else:
            chosen = format_of_items(stack, chosen)
            parts = stack_parts(spec, stack, chosen)
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.folder}: {error}") from error
    return FoundTensor(spec, chosen, _named(parts, checkpoint), stack)


def _named(parts: Sequence[TensorSpec], checkpoint: Checkpoint) -> tuple[tuple[TensorSpec, Sequence[str]], ...]:
    return tuple((part, stored_names(part, checkpoint)) for part in parts)


def _range(spec: TensorSpec, name: str, checkpoint: Checkpoint) -> TensorRange:
    entry = checkpoint.tensors[name]
    content = checkpoint.content(name) if spec.is_header else b""
    return TensorRange(spec.short, name, entry.file, entry.start, entry.length, entry.shape, entry.dtype, content)
