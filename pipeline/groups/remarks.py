"""What people should know about a checkpoint that works: what is not used, and what costs them time."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.leftovers import PARTS, other_part
from pipeline.formats.dense import Dense, StoredDense
from pipeline.formats.tensors import TensorRange, stored_dtype
from pipeline.groups.groups import WeightGroups

if TYPE_CHECKING:
    import torch

MOST_NAMED = 5


def remarks(
    checkpoint: Checkpoint, groups: WeightGroups, auto_dtype: "torch.dtype | None", activations: str = ""
) -> Iterator[str]:
    """A line for each; `auto_dtype` is what is computed in, unless the caller chose it.

    `activations` is what the writer of quantised weights computes these in, "" where it does not quantise them.
    """
    if groups.formats.keys() != {Dense.name}:
        named = "; ".join(f"{len(matrices)} matrices {name}" for name, matrices in groups.formats.items())
        kept = f"; activations are not quantised, where {activations} is meant" if activations else ""
        yield f"{checkpoint.folder}: weights: {named}{kept}"
    parts = Counter(other_part(name) for name in groups.ignored)
    if left_out := [f"{part} ({parts[part]} tensors)" for part in PARTS if parts[part]]:
        yield f"{checkpoint.folder}: text only: left out are {', '.join(left_out)}"
    if others := [name for name in groups.ignored if other_part(name) is None]:
        yield f"{checkpoint.folder}: not used for text: tensors {_some(others)}"
    if checkpoint.promised:
        missing = _some(sorted(checkpoint.promised))
        yield f"{checkpoint.folder}: the index promises tensors that no file holds and none is needed: {missing}"
    tensors: dict[str, TensorRange] = {}
    moving = (*groups.groups, *groups.experts)
    for group in moving:
        for tensor in group.tensors:
            tensors.setdefault(tensor.name, tensor)  # of the head the first slice
    if odd := [tensor for tensor in tensors.values() if tensor.is_odd]:
        yield (
            f"{checkpoint.folder}: tensors that begin at no multiple of their items' size: {len(odd)}, as "
            f"{odd[0].name!r} at byte {odd[0].start} of {odd[0].file.name}; they are moved after each "
            "read to where they can be used, which takes CPU time; write the file again with "
            "safetensors.torch.save_file to do without"
        )
    matrices = [one for group in moving for one in group.matrices if isinstance(one, StoredDense)]
    dense = {one.tensors[0].name: one for one in matrices}
    if cast := [one for one in dense.values() if auto_dtype is not None and one.dtype != auto_dtype]:
        has_f64 = any(one.dtype == stored_dtype("F64") for one in cast) and auto_dtype == stored_dtype("F32")
        first = cast[0].tensors[0]
        why = "config.json or the first matrix says so" + ", and float64 is computed in float32" * has_f64
        yield (
            f"{checkpoint.folder}: matrices that are cast to {auto_dtype} whenever they are used, since {why}: "
            f"{len(cast)}, as {first.name!r} in {first.dtype}; `dtype` sets another one"
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
