"""What people should know about a checkpoint that works: what is not used, and what costs them time."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.groups import WeightGroups
from pipeline.weights.layout import stored_dtype

if TYPE_CHECKING:
    import torch

MOST_NAMED = 5


def remarks(checkpoint: Checkpoint, groups: WeightGroups, auto_dtype: "torch.dtype | None") -> Iterator[str]:
    """A line for each; `auto_dtype` is what is computed in, unless somebody said so."""
    if groups.ignored:
        yield f"{checkpoint.folder}: not used for text: tensors {_some(groups.ignored)}"
    if checkpoint.promised:
        told = _some(sorted(checkpoint.promised))
        yield f"{checkpoint.folder}: the index promises tensors that no file holds and none is needed: {told}"
    moved = [tensor for group in groups.groups for tensor in group.tensors]
    if odd := [tensor for tensor in moved if tensor.is_odd]:
        yield (
            f"{odd[0].file}: tensor {odd[0].name!r} begins at byte {odd[0].start}, no multiple of its items' size"
            f"{_and_more(len(odd) - 1)}: the page cache copies such tensors to where they can be used, which takes CPU "
            "time; write the file again with safetensors.torch.save_file to have them read directly"
        )
    cast = {tensor.name: tensor for tensor in moved if len(tensor.shape) == 2}
    others = [one for one in cast.values() if auto_dtype is not None and stored_dtype(one.dtype) != auto_dtype]
    if others:
        yield (
            f"{others[0].file}: tensor {others[0].name!r} is stored as {others[0].dtype}{_and_more(len(others) - 1)}, "
            f"and cast whenever it is used: the model computes in {auto_dtype}; `dtype` sets another one"
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _and_more(count: int) -> str:
    return f", and so do {count} more" if count else ""
