"""The one memory plan: slots, groups that stay and all else that is held, added up before any memory is taken."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from pipeline.devices.port import MEMORY_SETTINGS, Device
from pipeline.engine.expert_room import ExpertRoom
from pipeline.engine.residency import NOTHING_STAYS, Residency, place_groups
from pipeline.engine.settings import FEWEST_GROUPS, EngineSettings
from pipeline.errors import ConfigError
from pipeline.groups.catalog import WeightCatalog
from pipeline.groups.groups import WeightGroup
from pipeline.groups.slot_kinds import Slots
from pipeline.system.host_memory import resident_bytes
from pipeline.system.limits import process_bounds
from pipeline.system.memory_plan import Holding, MemoryPlan
from pipeline.system.promises import open_models_take, promised_elsewhere
from pipeline.system.sizes import parse_bytes

SPARE_SHARE = 0.1
"""Resident groups leave so much free where no setting limits them: other programs need memory too."""
AHEAD_SECONDS = 0.0035
"""From the last computation of a pass to the first of the next that frees a slot, with up to 64 requests on an H200."""
DISK_AHEAD_BYTES = 64 << 20
"""Beside a group that is computed in its slot on a CPU: twice what four lanes read in chunks of 8 MiB."""
MOST_AHEAD_SHARE = 0.25
"""Of what the plan may fill, for slots that no setting asks for."""
LOADED_LATER = "kernels and workspaces, loaded later"
OWN_THREADS = 12
"""Threads that read, copy, compute and sample, beside those of torch."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an open line holds, and where; there is one place where host and device memory are the same.

    Attributes:
        memory: all that is held, added up.
        limits: what the plan may fill of each place, in bytes.
        slots: those through which groups move, by place.
        residency: the groups that stay.
        groups: how many groups move through the last place at a time, if any do.
        experts: how many experts have a slot in each place.
    """

    memory: MemoryPlan
    limits: Mapping[str, int]
    slots: Mapping[str, Slots]
    residency: Residency
    groups: int
    experts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Planning:
    """All that a plan follows from: what is `fixed`, and the slots. What else is held comes with each `plan`."""

    settings: EngineSettings
    catalog: WeightCatalog
    device: Device
    fixed: Sequence[Holding]
    available: dict[str, int]
    bounds: Mapping[str, str]
    limits: Mapping[str, int]
    slots: dict[str, Slots]
    experts: ExpertRoom | None
    divided: Mapping[str, int]

    @classmethod
    def of(
        cls,
        settings: EngineSettings,
        catalog: WeightCatalog,
        device: Device,
        holdings: Sequence[Holding],
        other_places: Mapping[str, int] | None = None,
        experts: ExpertRoom | None = None,
        sharing: Mapping[str, int] | None = None,
    ) -> Self:
        """Find out what there is; `other_places` hold no weights, in bytes.

        `holdings` are what the computation itself takes. Of a place that so many plans are `sharing` each has an equal
        part, also of what the process itself holds there. Raises ConfigError for settings that contradict each other.
        """
        first, sharing = device.places[0].name, sharing or {}
        divided = {first: sharing.get(first, 1)}
        promised = [
            replace(one, nbytes=one.nbytes // sharing.get(one.place, 1)) for one in promised_elsewhere(device.pools)
        ]
        before, later = resident_bytes() // divided[first], device.loads_later
        fixed = [
            Holding("Python, torch and what was there before", first, before, ""),
            *promised,
            *(Holding(LOADED_LATER, place, size // divided.get(place, 1), "") for place, size in later.items()),
            *holdings,
            *(experts.holdings(experts.least()) if experts else ()),
        ]
        available, bounds = _available(settings, device, promised, sharing)
        available |= other_places or {}
        # What the plan may fill: what the settings say, or all but a spare share.
        unsaid = {place.name for place in device.places if getattr(settings, place.memory_setting) is None}
        limits = {
            place: have - round(have * SPARE_SHARE) if place in unsaid else have for place, have in available.items()
        }
        left = limits[first] - sum(one.nbytes for one in fixed if one.place == first)
        settings = _for_disk(settings, catalog, device, left)
        slots = weight_slots(settings, catalog, device)
        return cls(settings, catalog, device, fixed, available, bounds, limits, slots, experts, divided)

    def for_link(self, bytes_per_second: float) -> Self:
        """With as many slots as a link needs that is the slowest of all, where no setting says how many.

        While a pass ends and the next begins no slot becomes free, so that the link rests unless the slots hold what it
        copies in `AHEAD_SECONDS`. What small groups need more of takes the place of groups that stay: their copies take
        as long as the link would rest. So there are no more than that time asks for.
        """
        if self.settings.gpu_groups is not None:
            return self
        place = self.device.places[-1].name
        groups = _groups_of(AHEAD_SECONDS * bytes_per_second, self.catalog.slot_bytes(place), self.limits[place])
        settings = replace(self.settings, gpu_groups=groups)
        return replace(self, settings=settings, slots=weight_slots(settings, self.catalog, self.device))

    def room(self, within: Mapping[str, int], held: Sequence[Holding] = ()) -> dict[str, int]:
        """Return what is left in each place, of that much memory, beside the slots and what else is `held`."""
        holdings = [*self.fixed, *held, *_slots(self.slots)]
        return {
            place: have - sum(one.nbytes for one in holdings if one.place == place) for place, have in within.items()
        }

    def plan(self, held: Sequence[Holding] = ()) -> Plan:
        """Add everything up; what is left holds groups for good. The plan may not fit: `Plan.memory.fits` tells."""
        room = self.room(self.limits, held)
        residency, slots = _place_groups(self.settings, self.catalog, self.slots, room)
        holdings = [*self.fixed, *held, *_slots(slots), *_residents(self.catalog, residency)]
        experts = self._expert_slots(holdings)
        limited_by = {place.name: place.memory_setting for place in self.device.places}
        memory = MemoryPlan((*holdings,), self.available, limited_by, self.bounds, self.divided)
        groups = self.settings.groups(self.device.places[-1].groups_setting)
        return Plan(memory, self.limits, slots, residency, groups, experts)

    def _expert_slots(self, holdings: list[Holding]) -> Mapping[str, int]:
        """Give experts what is left; adds it to what is held."""
        if self.experts is None:
            return {}
        held = Counter[str]()
        for one in holdings:
            held[one.place] += one.nbytes
        grown = self.experts.grown({place: limit - held[place] for place, limit in self.limits.items()})
        least = self.experts.least()
        holdings += self.experts.holdings({place: count - least[place] for place, count in grown.items()})
        return grown


def _for_disk(settings: EngineSettings, catalog: WeightCatalog, device: Device, limit: int) -> EngineSettings:
    """The settings with as many slots as keep the disk busy, where there is one place and no setting says how many.

    A model that is hardly larger than these slots gets the fewest: all that it moves would have a slot.
    """
    place = device.places[-1].name
    sizes = catalog.slot_bytes(place)
    ahead = DISK_AHEAD_BYTES + max(sizes.values())
    if settings.gpu_groups is not None or len(device.places) > 1 or catalog.needed_bytes * MOST_AHEAD_SHARE < ahead:
        return settings
    return replace(settings, gpu_groups=_groups_of(ahead, sizes, limit))


def _groups_of(nbytes: float, sizes: Mapping[str, int], limit: int) -> int:
    """How many groups, as many of each kind, hold so many bytes within `MOST_AHEAD_SHARE` of a limit; never fewer than
    the default."""
    one_of_each = sum(sizes.values())
    most = int(limit * MOST_AHEAD_SHARE / one_of_each)
    return max(FEWEST_GROUPS, len(sizes) * min(most, math.ceil(nbytes / one_of_each)))


def lay_out(groups: Sequence[WeightGroup], settings: EngineSettings, device: Device) -> WeightCatalog:
    """Where the bytes of each group lie in the slots of each place, and which kind of slot it needs."""
    fewest_slots = min(settings.groups(place.groups_setting) for place in device.places)
    return WeightCatalog(groups, device.places, device.alignment_bytes, fewest_slots)


def weight_slots(settings: EngineSettings, catalog: WeightCatalog, device: Device) -> dict[str, Slots]:
    """The slots of each place, through which groups move. Where there is one place, the uploader hands the slot on."""
    return {
        place.name: {
            kind: (count, catalog.slot_bytes(place.name)[kind])
            for kind, count in catalog.slot_kinds.counts(settings.groups(place.groups_setting)).items()
        }
        for place in device.places
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
        return Residency(dict.fromkeys(slots, ()) | {last: tuple(sizes[last])}), {**slots, last: unused}
    return place_groups(sizes, room), slots


def _residents(catalog: WeightCatalog, residency: Residency) -> list[Holding]:
    sizes = {place: catalog.group_bytes(place) for place, groups in residency.by_place.items() if groups}
    return [
        Holding(f"{len(stays)} resident groups", place, sum(of[one] for one in stays), "residency")
        for place, of in sizes.items()
        for stays in (residency.stays(place),)
    ]


def _available(
    settings: EngineSettings, device: Device, promised: Sequence[Holding], sharing: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, str]]:
    """What each place has: what is there, or what settings and limits allow if that is less; the limits by place.

    What several plans are `sharing` is divided, and so is what settings say of host memory, which is one.
    """
    available: dict[str, int] = {}
    bounds: dict[str, str] = {}
    for place in device.places:
        free, whole = device.memory_bytes(place)
        plans, is_first = sharing.get(place.name, 1), place is device.places[0]
        if is_first and device.pools:
            beside = plans * sum(one.nbytes for one in promised if one.place == place.name)
            free, bound = _within_limits(free, device.pools[place.name], beside, plans)
            whole = free
            bounds |= {place.name: bound} if bound else {}
        available[place.name] = free // plans
        if (said := getattr(settings, place.memory_setting)) is not None:
            most = parse_bytes(place.memory_setting, said, whole)
            available[place.name] = min(free // plans, most // plans if is_first else most)
    computes_in = device.places[-1]
    for name in MEMORY_SETTINGS:
        if getattr(settings, name) is not None and all(name != place.memory_setting for place in device.places):
            hint = f"this device computes in {computes_in.name} memory; set {computes_in.memory_setting} instead"
            raise ConfigError(f"{name}: {hint}")
    return available, bounds


def _within_limits(free: int, pool: str, promised_bytes: int, lines: int) -> tuple[int, str | None]:
    """Return what this process may hold of `free` memory, with what it holds by now; and the limit that says so."""
    have, bound = free + resident_bytes(), None
    mapped = resident_bytes() + promised_bytes  # the plan counts these as held, and `left` is beside them
    threads = OWN_THREADS * lines + torch.get_num_threads()
    for name, left in process_bounds(threads, open_models_take(pool)[0]).items():
        if mapped + left < have:
            have, bound = mapped + left, name
    return have, bound
