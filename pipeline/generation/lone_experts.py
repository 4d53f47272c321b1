"""Whether a GPU multiplies by the experts of a model one by one, as its kernels for many do not know them."""

from collections.abc import Collection, Mapping, Sequence

import torch

from pipeline.formats.matrix import StoredMatrix, Weights
from pipeline.formats.tensors import stored_dtype
from pipeline.groups.groups import WeightGroup, WeightGroups
from pipeline.models.expert_places import places
from pipeline.models.feed_forwards import Experts
from pipeline.models.model_config import ModelConfig


def lone_experts(model: ModelConfig, groups: WeightGroups) -> str | None:
    """A sentence on those that are multiplied by one by one; None where there are none."""
    alike = {_alike(model, one): one for one in groups.experts}
    unknown = [form for form, one in alike.items() if not _is_known(model, one)]
    lone = [one for one in groups.experts if _alike(model, one) in unknown]
    if not lone:
        return None
    layers, stored_in = len({one.layer for one in lone}), _stored_in(lone, groups.formats)
    return (
        f"{len(lone):,} experts of {layers} layers are multiplied one by one, which is slower: the kernels that "
        f"multiply by many do not know how these compute, or are stored ({stored_in})"
    )


def _alike(model: ModelConfig, group: WeightGroup) -> tuple[object, ...]:
    tensors = tuple((tensor.short, tensor.dtype, tensor.shape) for tensor in group.tensors)
    return model.layer_kinds[group.layer].feed_forward, tensors, tuple(one.form for one in group.matrices)


def _is_known(model: ModelConfig, group: WeightGroup) -> bool:
    kind = model.layer_kinds[group.layer].feed_forward
    if not isinstance(kind, Experts):
        return True
    views = {
        tensor.short: torch.empty(tensor.shape, dtype=stored_dtype(tensor.dtype), device="meta")
        for tensor in group.tensors
    }
    weights = Weights(views, {one.short: one.over(views) for one in group.matrices})
    return places(kind.expert, weights, 0) is not None


def _stored_in(lone: Sequence[WeightGroup], formats: Mapping[str, Sequence[StoredMatrix]]) -> str:
    tensors = {part.name for one in lone for matrix in one.matrices for part in matrix.tensors}
    return " and ".join(name for name, matrices in formats.items() if _has(matrices, tensors))


def _has(matrices: Sequence[StoredMatrix], tensors: Collection[str]) -> bool:
    return any(part.name in tensors for one in matrices for part in one.tensors)
