"""Tensors that hold those of all experts of a layer, one behind the other, in any format."""

from dataclasses import replace

from pipeline.formats.dense import Dense
from pipeline.formats.matrix import Format
from pipeline.formats.tensors import Stacked, TensorSpec


def item_spec(spec: TensorSpec, stack: Stacked) -> TensorSpec:
    """The item of the stack that a tensor is in, or is a part of."""
    rows, *columns = spec.shape
    return replace(spec, name=stack.name, shape=(rows * stack.parts, *columns))


def format_of_items(stack: Stacked, found: Format) -> Format:
    """How matrices lie there, whose format is the one that was found."""
    return Dense(transposed=stack.transposed) if isinstance(found, Dense) else found


def stack_parts(item: TensorSpec, stack: Stacked, items: Format | None) -> tuple[TensorSpec, ...]:
    """The tensors that a checkpoint holds for a stack of such items, which are matrices where they have a format.

    Raises ConfigError where the format does not fit their shape.
    """
    parts = (item,) if items is None else items.stored_as(item)
    return tuple(part.each(stack.count) for part in parts)
