"""What the coordinator and the sections call each other with, beside orders: plain data, which needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.core.trace import Count, Span
from pipeline.engine.dealing import Share
from pipeline.errors import PenstockError

if TYPE_CHECKING:
    import torch

    from pipeline.cluster.cluster_statistics import NodeCounts
    from pipeline.generation.pass_size import PassSize
    from pipeline.state.kv_room import KvRoom
    from pipeline.state.state_layout import StateRoom
    from pipeline.system.memory_plan import MemoryPlan


@dataclass(frozen=True, slots=True)
class Survey:
    """What a node says before any memory is taken. `told` must be alike on all nodes, name by name.

    `layer_bytes` are those of the model's layers, of which the last is the head.
    """

    node: str
    told: Mapping[str, str]
    layer_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a section could do with some layers: its share of a pass, and for how many tokens it would have room."""

    share: Share
    kv_tokens: int
    pass_tokens: int


@dataclass(frozen=True, slots=True)
class SectionPlan:
    """What a section computes: `owners` says the section of each layer, of which the last is the head.

    `kv_tokens` and `pass_tokens` are those of all sections; `others` are the actors of all.
    """

    owners: tuple[int, ...]
    kv_tokens: int
    pass_tokens: int
    others: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Opened:
    """What an open section tells: where it is; for how many tokens of a request and of all it has room, for how many
    states, and how large passes may be; what it computes in, and how it is run, as plain data; and what it has counted.
    """

    node: str
    process: int
    context_tokens: int
    kv_room: "KvRoom"
    state_room: "StateRoom | None"
    pass_size: "PassSize"
    dtype: "torch.dtype"
    plan: "MemoryPlan"
    described: Mapping[str, Any]
    counted: "NodeCounts"


@dataclass(frozen=True, slots=True)
class NodeTrace:
    """What a section has recorded, by the clock of its process; its names bear no number."""

    spans: tuple[Span, ...]
    counts: tuple[Count, ...]
    dropped: int


RECORDING_GONE = "its process was started again since the recording began, and has none; record once more"


class NotBegun(PenstockError):
    """A section was asked to go on by one who does not know that its process was started anew."""


class SectionUnreachable(PenstockError):
    """A section could not hand its hidden states on to `section`."""

    def __init__(self, section: int, said: str) -> None:
        super().__init__(section, said)
        self.section = section
        self.said = said


def layers_of(section: int, owners: Sequence[int]) -> frozenset[int]:
    """The layers of a section; the head counts as one more."""
    return frozenset(layer for layer, owner in enumerate(owners) if owner == section)


def name_layers(section: int, owners: Sequence[int]) -> str:
    """The layers of a section, for people: "layers 0, 2, 4 to 6 and the head"."""
    head = len(owners) - 1
    layers = sorted(layers_of(section, owners) - {head})
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1] = [runs[-1][0], layer]
        else:
            runs.append([layer])
    names = [f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return f"layer{'s' * (len(layers) > 1)} {', '.join(names)}{' and the head' * (owners[head] == section)}"
