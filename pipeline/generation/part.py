"""Which layers a plan is for, and what their section must know of the others."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from pipeline.devices.port import Device
from pipeline.groups.groups import WeightGroups
from pipeline.models.feed_forwards import Experts
from pipeline.models.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class Part:
    """What one section computes.

    Attributes:
        layers: the numbers of its layers; that behind the last one is the head.
        sections: how many read from the same disk.
        sharing: by place, how many of them take from the same memory.
        computed_bytes: those of all weights of the model as a pass computes with them: what is stored in fewer is
            decoded for every pass.
        chosen_experts: how many a token uses, of all its layers together.
    """

    layers: frozenset[int]
    sections: int
    sharing: Mapping[str, int]
    computed_bytes: int
    chosen_experts: int

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        groups: WeightGroups,
        dtype: torch.dtype,
        layers: Collection[int],
        device: Device,
        devices: Sequence[Device],
    ) -> "Part":
        """That of the layers that `device` computes, one of several; `groups` are those of the whole model."""
        parameters = sum(one.parameters for one in groups.groups)
        if groups.experts:
            parameters += sum(one.parameters for one in groups.experts) * model.chosen_experts // len(groups.experts)
        kinds = [model.layer_kinds[layer].feed_forward for layer in layers if layer < model.layers]
        chosen = sum(kind.chosen for kind in kinds if isinstance(kind, Experts))
        own, every = _pools(device), Counter(pool for one in devices for pool in {*_pools(one).values()})
        sharing = {place: every[pool] for place, pool in own.items()}
        return cls(frozenset(layers), len(devices), sharing, parameters * dtype.itemsize, chosen)


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all sections have in common: room for so many tokens of KV blocks, and `why`; tokens of a pass."""

    kv_tokens: int
    why: str
    pass_tokens: int


def _pools(device: Device) -> Mapping[str, str]:
    """The memory behind each place; devices that are not here have host memory in common."""
    names = [place.name for place in device.places]
    return device.pools or {name: name if name == names[0] else f"{name} of {id(device)}" for name in names}
