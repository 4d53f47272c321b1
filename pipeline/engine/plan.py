"""The one memory plan: slots, groups that stay and all else that is held, added up before any memory is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from pipeline.devices.open import PlannedDevice
from pipeline.engine.residency import NOTHING_STAYS, Residency, place_groups
from pipeline.engine.settings import EngineSettings
from pipeline.errors import ConfigError
from pipeline.groups.catalog import WeightCatalog
from pipeline.system.limits import process_bounds
from pipeline.system.memory import available_host_bytes, resident_bytes
from pipeline.system.memory_plan import Holding, MemoryPlan
from pipeline.system.promises import open_models_take, promised_elsewhere
from pipeline.system.sizes import parse_bytes

SPARE_SHARE = 0.1
"""What resident groups leave free where no setting limits them: it is others' memory too."""
OWN_THREADS = 12
"""That read, copy, compute and sample, beside those of torch."""
Slots = Mapping[str, tuple[int, int]]
"""By kind of slot: how many, and of how many bytes each."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an open line holds, and where. Without slots on the device host and device memory are one.

    `limits` are what each place may be filled to, in bytes.
    """

    memory: MemoryPlan
    limits: Mapping[str, int]
    slots: Mapping[str, Slots]
    residency: Residency


@dataclass(frozen=True, slots=True, kw_only=True)
class Planning:
    """All that a plan follows from: what is `fixed`, and the slots. What else is held comes with each `plan`."""

    settings: EngineSettings
    catalog: WeightCatalog
    device: PlannedDevice
    fixed: Sequence[Holding]
    available: dict[str, int]
    bounds: Mapping[str, str]
    limits: Mapping[str, int]
    slots: dict[str, Slots]

    @classmethod
    def of(
        cls,
        settings: EngineSettings,
        catalog: WeightCatalog,
        device: PlannedDevice,
        holdings: Sequence[Holding],
        host_bytes: int | None = None,
        other_places: Mapping[str, int] | None = None,
    ) -> Self:
        """Find out what there is: `host_bytes`, if not on this machine; `other_places` hold no weights, in bytes.

        `holdings` are what the computation itself takes. Raises ConfigError for settings that contradict each other.
        """
        promised = promised_elsewhere(_pools(device))
        fixed = [
            Holding("Python, torch and what was there before", "host", resident_bytes(), ""),
            *promised,
            *(
                Holding("kernels and workspaces, loaded later", place, size, "")
                for place, size in device.loads_later.items()
            ),
            *holdings,
        ]
        available, bounds = _available(settings, device, host_bytes, promised)
        available |= other_places or {}
        return cls(
            settings=settings,
            catalog=catalog,
            device=device,
            fixed=fixed,
            available=available,
            bounds=bounds,
            limits=_limits(settings, available),
            slots=weight_slots(settings, catalog, device),
        )

    @property
    def weights_place(self) -> str:
        """Where weights are computed with."""
        return list(self.slots)[-1]

    def room(self, within: Mapping[str, int], held: Sequence[Holding] = ()) -> dict[str, int]:
        """What is left in each place, of that much memory, beside the slots and what else is `held`."""
        holdings = [*self.fixed, *held, *_slots(self.slots)]
        return {
            place: have - sum(one.nbytes for one in holdings if one.place == place) for place, have in within.items()
        }

    def plan(self, held: Sequence[Holding] = ()) -> Plan:
        """Add everything up; what is left holds groups for good. The plan may not fit: `Plan.memory.fits` tells."""
        room = self.room(self.limits, held)
        residency, slots = _place_groups(self.settings, self.catalog, self.slots, room)
        holdings = (*self.fixed, *held, *_slots(slots), *_residents(self.catalog, residency))
        return Plan(MemoryPlan(holdings, self.available, self.bounds), self.limits, slots, residency)


def _pools(device: PlannedDevice) -> dict[str, str]:
    """What the places that are planned for take from: memory that is one is one place."""
    return {place: pool for place, pool in device.pools.items() if place == "host" or not device.unified}


def weight_slots(settings: EngineSettings, catalog: WeightCatalog, device: PlannedDevice) -> dict[str, Slots]:
    """The slots in host memory and on the device, through which groups move.

    Memory that is one has one budget: the uploader hands the slot on, and the group budget bounds the host slots.
    """
    places = (
        {"host": settings.gpu_groups}
        if device.unified
        else {"host": settings.host_groups, "device": settings.gpu_groups}
    )
    return {
        place: {
            kind: (count, catalog.slot_bytes(place)[kind]) for kind, count in catalog.slot_kinds.counts(groups).items()
        }
        for place, groups in places.items()
    }


def _slots(slots: Mapping[str, Slots]) -> list[Holding]:
    last = list(slots)[-1]
    return [
        Holding(f"{count} {kind} slots", place, count * size, "gpu_groups" if place == last else "host_groups")
        for place, kinds in slots.items()
        for kind, (count, size) in kinds.items()
        if count
    ]


def _place_groups(
    settings: EngineSettings, catalog: WeightCatalog, slots: dict[str, Slots], room: Mapping[str, int]
) -> tuple[Residency, dict[str, Slots]]:
    """Which groups stay, and the slots that are needed then: where everything stays nothing moves through them."""
    if not settings.residency:
        return NOTHING_STAYS, slots
    sizes = {place: catalog.group_bytes(place) for place in slots}
    last = list(slots)[-1]
    window_bytes = sum(count * size for count, size in slots[last].values())
    if sum(sizes[last].values()) <= room[last] + window_bytes:
        unused = {kind: (0, size) for kind, (_, size) in slots[last].items()}
        return Residency(**{last: tuple(sizes[last])}), {**slots, last: unused}
    return place_groups(sizes.get("device", {}), room.get("device", 0), sizes["host"], room["host"]), slots


def _residents(catalog: WeightCatalog, residency: Residency) -> list[Holding]:
    held = {"device": residency.device, "host": residency.host}
    sizes = {place: catalog.group_bytes(place) for place, groups in held.items() if groups}
    return [
        Holding(f"{len(held[place])} resident groups", place, sum(of[one] for one in held[place]), "residency")
        for place, of in sizes.items()
    ]


def _available(
    settings: EngineSettings, device: PlannedDevice, host_bytes: int | None, promised: Sequence[Holding]
) -> tuple[dict[str, int], dict[str, str]]:
    """What each place has: what is there, or what settings and limits allow if that is less; the limits by place."""
    host, bounds = host_bytes, {}
    if host is None:
        host = available_host_bytes() + resident_bytes()
        threads = OWN_THREADS + torch.get_num_threads()
        mapped = resident_bytes() + sum(one.nbytes for one in promised if one.place == "host")  # in the limits' count
        for bound, left in process_bounds(threads, open_models_take("host")[0]).items():
            if mapped + left < host:
                host, bounds["host"] = mapped + left, bound
    if settings.host_memory is not None:
        host = min(host, parse_bytes("host_memory", settings.host_memory, host))
    available = {"host": host}
    if not device.unified:
        free, whole = device.memory_bytes()
        if settings.gpu_memory is not None:
            free = min(free, parse_bytes("gpu_memory", settings.gpu_memory, whole))
        available["device"] = free
    elif settings.gpu_memory is not None:
        raise ConfigError("gpu_memory: this device computes in host memory; set host_memory instead")
    return available, bounds


def _limits(settings: EngineSettings, available: Mapping[str, int]) -> dict[str, int]:
    """What the plan may fill: what the settings say, or all but a spare share."""
    said = {"host": settings.host_memory is not None, "device": settings.gpu_memory is not None}
    return {
        place: have if said.get(place, True) else have - round(have * SPARE_SHARE) for place, have in available.items()
    }
