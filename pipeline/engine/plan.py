"""The one memory plan: window, KV blocks, activations and logits added up, holder by holder, before any is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipeline.config import Config
from pipeline.devices.open import PlannedDevice
from pipeline.engine.residency import NOTHING_STAYS, Residency, moving_bytes, place_groups
from pipeline.errors import ConfigError
from pipeline.generation.pass_holdings import pass_holdings
from pipeline.groups.catalog import WeightCatalog
from pipeline.groups.groups import WeightGroups
from pipeline.groups.slot_kinds import slot_counts
from pipeline.models.config import ModelConfig
from pipeline.state.blocks import BLOCK_TOKENS, blocks_for
from pipeline.state.kv_holdings import kv_holdings, place_layers
from pipeline.state.kv_layout import KvLayout
from pipeline.state.kv_placement import KvPlacement
from pipeline.state.kv_room import Demand, KvRoom, PassBytes, choose_room
from pipeline.system.limits import process_bounds
from pipeline.system.memory import available_host_bytes, free_disk_bytes, resident_bytes
from pipeline.system.memory_plan import Holding, MemoryPlan
from pipeline.system.promises import open_models_take, promised_elsewhere
from pipeline.system.sizes import parse_bytes

DEFAULT_CONTEXT_TOKENS = 4096
SPARE_SHARE = 0.1
"""What resident groups leave free where no setting limits them: it is others' memory too."""
OWN_THREADS = 12
"""That read, copy, compute and sample, beside those of torch."""
Slots = Mapping[str, tuple[int, int]]
"""By kind of slot: how many, and of how many bytes each."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an open model holds, and where. Without slots on the device host and device memory are one.

    `limits` are what each place may be filled to, in bytes.
    """

    memory: MemoryPlan
    limits: Mapping[str, int]
    context_tokens: int
    slots: Mapping[str, Slots]
    kv_layout: KvLayout
    kv: KvPlacement
    kv_room: KvRoom
    residency: Residency


def make_plan(
    model: ModelConfig,
    settings: Config,
    groups: WeightGroups,
    catalog: WeightCatalog,
    device: PlannedDevice,
    dtype: torch.dtype,
    host_bytes: int | None = None,
) -> Plan:
    """Add everything up. KV blocks get what is left: the device first, then host memory, then the disk.

    What they leave holds weight groups for good. Where `kv_tokens` does not say how many there are, they get what makes
    most tokens per second. `host_bytes` are what is available, if not on this machine. The plan may not fit:
    `Plan.memory.fits` tells. Raises ConfigError for settings that contradict each other.
    """
    context_tokens = _context_tokens(model, settings)
    told = _told_tokens(settings, context_tokens)
    promised = promised_elsewhere(_pools(device))
    fixed = [
        Holding("Python, torch and what was there before", "host", resident_bytes(), ""),
        *promised,
        *(
            Holding("kernels and workspaces, loaded later", place, size, "")
            for place, size in device.loads_later.items()
        ),
        *pass_holdings(model, settings, groups, device, dtype, context_tokens),
    ]
    available, bounds = _available(settings, device, host_bytes, promised)
    parts = _Parts(
        model=model,
        settings=settings,
        catalog=catalog,
        device=device,
        dtype=dtype,
        context_tokens=context_tokens,
        fixed=fixed,
        available=available,
        bounds=bounds,
        limits=_limits(settings, available),
        slots=weight_slots(settings, catalog, device),
    )
    if told is not None:
        return parts.planned(told, "as kv_tokens says", available, "kv_tokens")
    return parts.planned_by_worth()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """All that a plan follows from, but for the room of KV blocks."""

    model: ModelConfig
    settings: Config
    catalog: WeightCatalog
    device: PlannedDevice
    dtype: torch.dtype
    context_tokens: int
    fixed: Sequence[Holding]
    available: dict[str, int]
    bounds: Mapping[str, str]
    limits: Mapping[str, int]
    slots: dict[str, Slots]

    def planned(self, tokens: int, why: str, within: Mapping[str, int], knob: str) -> Plan:
        """With room for so many tokens, which `knob` changes, `within` that much memory."""
        layout = KvLayout.of(self.model, blocks_for(tokens), self.dtype)
        free = _free(within, [*self.fixed, *_slots(self.slots)])
        kv = place_layers(self.model.layers, layout.layer_bytes, self.settings, self.device, free)
        held = [*self.fixed, *kv_holdings(layout, kv, knob, self.settings, self.device)]
        room = _free(self.limits, [*held, *_slots(self.slots)])
        residency, slots = _place_groups(self.settings, self.catalog, self.slots, room)
        memory = MemoryPlan((*held, *_slots(slots), *_residents(self.catalog, residency)), self.available, self.bounds)
        kv_room = KvRoom(layout.blocks * BLOCK_TOKENS, layout.layer_bytes * self.model.layers, why)
        return Plan(memory, self.limits, self.context_tokens, slots, layout, kv, kv_room, residency)

    def planned_by_worth(self) -> Plan:
        """With room for what makes most tokens per second, and for one request of a whole context in any case."""
        settings = self.settings
        demand = Demand.of(self.context_tokens, settings.max_requests, settings.max_tokens_per_pass)

        def planned(tokens: int, why: str = "") -> Plan:
            least = tokens == demand.longest
            within, knob = (self.available, "context_tokens") if least else (self.limits, "kv_tokens")
            return self.planned(tokens, why, within, knob)

        usual = planned(demand.usual).memory
        roomy = {  # other models of this process want memory too: where no setting limits it, half of the rest is left
            place: limit if limit == self.available[place] else (usual.need(place) + limit) // 2
            for place, limit in self.limits.items()
        }

        def moves(tokens: int) -> PassBytes | None:
            plan, limits = planned(tokens), self.limits if tokens <= demand.usual else roomy
            fits = all(plan.memory.need(place) <= limit for place, limit in limits.items())
            return self._pass_bytes(plan) if fits else None

        place = list(self.slots)[-1]
        weights = sum(self.catalog.group_bytes(place).values())
        return planned(*choose_room(demand, weights, place, moves))

    def _pass_bytes(self, plan: Plan) -> PassBytes:
        stays, layer_bytes = plan.residency, plan.kv_layout.layer_bytes
        read = moving_bytes(self.catalog.group_bytes("host"), stays.device, stays.host)
        read += len(plan.kv.disk) * layer_bytes
        if self.device.unified:
            return PassBytes(read, 0)
        sent = moving_bytes(self.catalog.group_bytes("device"), stays.device) + len(plan.kv.moving) * layer_bytes
        return PassBytes(read, sent)


def _pools(device: PlannedDevice) -> dict[str, str]:
    """What the places that are planned for take from: memory that is one is one place."""
    return {place: pool for place, pool in device.pools.items() if place == "host" or not device.unified}


def weight_slots(settings: Config, catalog: WeightCatalog, device: PlannedDevice) -> dict[str, Slots]:
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
            kind: (count, catalog.slot_bytes(place)[kind])
            for kind, count in slot_counts(groups, two_kinds=catalog.two_kinds).items()
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
    settings: Config, catalog: WeightCatalog, slots: dict[str, Slots], room: Mapping[str, int]
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
    settings: Config, device: PlannedDevice, host_bytes: int | None, promised: Sequence[Holding]
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
    if settings.kv_disk is not None:
        available["disk"] = free_disk_bytes(settings.kv_disk)
    return available, bounds


def _limits(settings: Config, available: Mapping[str, int]) -> dict[str, int]:
    """What the plan may fill: what the settings say, or all but a spare share."""
    said = {"host": settings.host_memory is not None, "device": settings.gpu_memory is not None}
    return {
        place: have if said.get(place, True) else have - round(have * SPARE_SHARE) for place, have in available.items()
    }


def _free(available: Mapping[str, int], holdings: Sequence[Holding]) -> dict[str, int]:
    return {
        place: have - sum(one.nbytes for one in holdings if one.place == place) for place, have in available.items()
    }


def _context_tokens(model: ModelConfig, settings: Config) -> int:
    if settings.context_tokens is None:
        return min(model.max_positions, DEFAULT_CONTEXT_TOKENS)
    if settings.context_tokens > model.max_positions:
        raise ConfigError(
            f"context_tokens: the model was made for {model.max_positions} positions, have {settings.context_tokens}"
        )
    return settings.context_tokens


def _told_tokens(settings: Config, context_tokens: int) -> int | None:
    """What the setting says, if it does."""
    if settings.kv_tokens is not None and settings.kv_tokens < context_tokens:
        raise ConfigError(
            f"kv_tokens: need at least the {context_tokens} of context_tokens, so that any request can be held alone, "
            f"have {settings.kv_tokens}"
        )
    return settings.kv_tokens
