"""What an open model says about one of its sections: the layers that one device computes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.formats.parts import gives_logits
from pipeline.generation.kv_record import SectionKvRecord, section_kv

if TYPE_CHECKING:
    from pipeline.generation.section_runtime import SectionRuntime


@dataclass(frozen=True, slots=True)
class HeldRecord:
    """Bytes of weights in one place: of groups that stay there, and of slots for those that move. Of the disk what is
    read in every pass.
    """

    stays: int
    moves: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionRecord:
    """Counters of a section since the model was opened; those of its actors since they last started.

    Attributes:
        number: from 0 on, in the order in which devices were given.
        node: the machine that it is on, in a cluster.
        device: what computes.
        layers: those that it computes.
        has_head: whether it computes the head, behind the last layer.
        groups: how many weight groups a pass computes there.
        moving_groups: how many of them come to the device anew in every pass.
        resident_groups: how many stay, by place, and move no more.
        weights: the bytes that lie in each place, the nearest to computing first, and on the disk.
        bytes_read: of its groups, and of the embedding's rows where it has the embedding, padding included. Of several
            sections those of a group count when it has arrived whole.
        bytes_uploaded: of weights, to the device.
        kv: the KV blocks of its layers.
        busy_seconds, stalled_seconds: by the name of the actor, without the number of the section.
        waited_seconds: for how long passes stood before its groups while no device computed: its weights, or hidden
            states from another section, were on their way. The larger it is, the more this section holds up the others.
            None where it is the only one.
    """

    number: int
    device: str
    layers: tuple[int, ...]
    has_head: bool
    groups: int
    moving_groups: int
    resident_groups: Mapping[str, int]
    weights: Mapping[str, HeldRecord]
    bytes_read: int
    bytes_uploaded: int
    kv: SectionKvRecord
    busy_seconds: Mapping[str, float]
    stalled_seconds: Mapping[str, float]
    waited_seconds: float | None
    node: str | None = None

    def __str__(self) -> str:
        """Where it is, and what it computes."""
        layers = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)}{' and the head' * self.has_head}"
        return " · ".join([*filter(None, [self.node]), self.device, layers])


def section_record(
    number: int, runtime: "SectionRuntime", waited_seconds: float | None, node: str | None = None
) -> SectionRecord:
    """Read all counters now."""
    catalog, counters = runtime.catalog, runtime.counters()
    suffix = "" if runtime.number is None else f" {runtime.number}"
    busy, stalled = (
        {name.removesuffix(suffix): seconds for name, seconds in counters[kind].items()}
        for kind in ("busy_seconds", "stalled_seconds")
    )
    return SectionRecord(
        number=number,
        node=node,
        device=str(runtime.device.torch_device),
        layers=tuple(dict.fromkeys(layer for layer, group in catalog.order if not gives_logits(group))),
        has_head=any(gives_logits(group) for _, group in catalog.order),
        groups=len(catalog.order),
        moving_groups=counters["moving_groups"],
        resident_groups=counters["resident_groups"],
        weights=_weights(runtime),
        bytes_read=_bytes_read(runtime),
        bytes_uploaded=counters["bytes_uploaded"],
        kv=section_kv(runtime.cache),
        busy_seconds=busy,
        stalled_seconds=stalled,
        waited_seconds=waited_seconds,
    )


def _bytes_read(runtime: "SectionRuntime") -> int:
    if runtime.number is None:
        return runtime.source.bytes_read
    return runtime.bytes_read + (0 if runtime.embedding is None else runtime.source.rows.bytes_read)


def _weights(runtime: "SectionRuntime") -> dict[str, HeldRecord]:
    catalog, found = runtime.catalog, dict[str, HeldRecord]()
    for place, slots in reversed([*runtime.place_slots.items()]):
        sizes, slot_bytes = catalog.group_bytes(place), catalog.slot_bytes(place)
        stays = sum(sizes[key] for key in runtime.residency.stays(place))
        found[place] = HeldRecord(stays, sum(count * slot_bytes[kind] for kind, count in slots.items()))
    return {**found, "disk": HeldRecord(0, runtime.moving_bytes)}
