"""The one memory plan: window, KV blocks, activations and logits added up, holder by holder, before any is taken."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipeline.config import Config
from pipeline.devices.open import PlannedDevice
from pipeline.errors import ConfigError
from pipeline.limits import process_bounds
from pipeline.memory import (
    Holding,
    MemoryPlan,
    available_host_bytes,
    free_disk_bytes,
    parse_bytes,
    resident_bytes,
    slot_counts,
)
from pipeline.models.attention import GPU_CELL
from pipeline.models.config import ModelConfig
from pipeline.models.row_blocks import RowBlocks
from pipeline.policies import find_policy
from pipeline.promises import promised_elsewhere
from pipeline.residency import NOTHING_STAYS, Residency, place_groups
from pipeline.sequences.blocks import blocks_for
from pipeline.sequences.kv_layout import KvLayout
from pipeline.sequences.kv_placement import KvPlacement, place_kv, place_kv_in_one
from pipeline.sequences.pass_inputs import PassInputs
from pipeline.sequences.sampling import Sampler
from pipeline.weights.catalog import WeightCatalog
from pipeline.weights.groups import WeightGroups
from pipeline.weights.layout import stored_dtype

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

    What they leave holds weight groups for good. `host_bytes` are what is available, if not on this machine. The plan
    may not fit: `Plan.memory.check` tells. Raises ConfigError for settings that contradict each other.
    """
    context_tokens = _context_tokens(model, settings)
    layout = KvLayout.of(model, blocks_for(_kv_tokens(settings, context_tokens)), dtype)
    promised = promised_elsewhere(_pools(device))
    fixed = [
        Holding("Python, torch and what was there before", "host", resident_bytes(), ""),
        *promised,
        *(
            Holding("kernels and workspaces, loaded later", place, size, "")
            for place, size in device.loads_later.items()
        ),
        *_per_pass(model, settings, groups, device, dtype, layout, context_tokens),
    ]
    available, bounds = _available(settings, device, host_bytes, promised)
    slots = weight_slots(settings, catalog, device)
    free = _free(available, [*fixed, *_slots(slots)])
    kv = _place_kv(model.layers, layout.layer_bytes, settings, device, free)
    fixed += _kv(layout.layer_bytes, kv, settings, device)
    limits = _limits(settings, available)
    room = _free(limits, [*fixed, *_slots(slots)])
    residency, slots = _place_groups(settings, catalog, slots, room)
    residents = _residents(catalog, residency)
    memory = MemoryPlan((*fixed, *_slots(slots), *residents), available, bounds)
    return Plan(memory, limits, context_tokens, slots, layout, kv, residency)


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
    return [
        Holding(
            f"{len(groups)} resident groups", place, sum(catalog.group_bytes(place)[one] for one in groups), "residency"
        )
        for place, groups in held.items()
        if groups
    ]


def _per_pass(
    model: ModelConfig,
    settings: Config,
    groups: WeightGroups,
    device: PlannedDevice,
    dtype: torch.dtype,
    layout: KvLayout,
    context_tokens: int,
) -> list[Holding]:
    """What computing takes beside weights and KV blocks."""
    place = "host" if device.unified else "device"
    tokens = settings.max_tokens_per_pass
    rows = tokens * groups.embed.length // groups.embed.shape[0]
    logits = settings.max_requests * model.vocabulary_size * torch.float32.itemsize
    blocks = RowBlocks.of(dtype, gpu=not device.unified, batch_invariant=settings.batch_invariant)
    activations = blocks.padded(tokens) * (4 * model.hidden_size + 3 * model.ffn_size) * max(dtype.itemsize, 4)
    casts = _cast_bytes(groups, dtype) * min(2, find_policy(settings.policy).micro_batches)
    inputs = PassInputs.nbytes(tokens, settings.max_requests, context_tokens)
    tables = settings.max_requests * Sampler.table_bytes(model.vocabulary_size)
    return [
        *(Holding("embedding rows", where, rows, "max_tokens_per_pass") for where in ("host", place)),
        Holding("activations", place, activations, "max_tokens_per_pass"),
        *(Holding("activations: weights that are cast", place, casts, "") for _ in range(bool(casts))),
        Holding(
            "activations: KV of one request and layer",
            place,
            2 * (context_tokens + GPU_CELL) * layout.row_bytes,
            "context_tokens",
        ),
        *(Holding("logits", where, logits, "max_requests") for where in ("host", place)),
        Holding("penalty tables", "host", tables, "max_requests"),
        *(Holding("positions and block tables", where, inputs, "max_requests") for where in ("host", place)),
    ]


def _cast_bytes(groups: WeightGroups, dtype: torch.dtype) -> int:
    """The largest tensor that is cast to what is computed in: a lane casts one at a time."""
    stored = [tensor for group in groups.groups for tensor in group.tensors if stored_dtype(tensor.dtype) != dtype]
    return max((math.prod(tensor.shape) for tensor in stored), default=0) * dtype.itemsize


def _available(
    settings: Config, device: PlannedDevice, host_bytes: int | None, promised: Sequence[Holding]
) -> tuple[dict[str, int], dict[str, str]]:
    """What each place has: what is there, or what settings and limits allow if that is less; the limits by place."""
    host, bounds = host_bytes, {}
    if host is None:
        host = available_host_bytes() + resident_bytes()
        mapped = resident_bytes() + sum(one.nbytes for one in promised if one.place == "host")  # in the limits' count
        for bound, left in process_bounds(OWN_THREADS + torch.get_num_threads()).items():
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


def _place_kv(
    layers: int, layer_bytes: int, settings: Config, device: PlannedDevice, free: Mapping[str, int]
) -> KvPlacement:
    """Without a disk host memory must do, and the check of the plan refuses what it cannot hold."""
    host_room = layers if settings.kv_disk is None else free["host"] // layer_bytes
    if device.unified:
        return place_kv_in_one(layers, host_room)
    return place_kv(layers, free["device"] // layer_bytes, host_room)


def _kv(layer_bytes: int, kv: KvPlacement, settings: Config, device: PlannedDevice) -> list[Holding]:
    knob = _kv_knob(settings)
    or_disk = knob if settings.kv_disk is not None else f"{knob}, or set kv_disk"
    place = "host" if device.unified else "device"
    holdings = (
        Holding(
            f"KV blocks of {len(kv.device)} layers",
            place,
            len(kv.device) * layer_bytes,
            or_disk if device.unified else knob,
        ),
        Holding(f"KV blocks: {kv.window} layers take turns", "device", kv.window * layer_bytes, knob),
        Holding(f"KV blocks of {len(kv.host)} layers", "host", len(kv.host) * layer_bytes, or_disk),
        Holding(f"KV blocks: {kv.staging} layers pass through", "host", kv.staging * layer_bytes, knob),
        Holding(f"KV blocks of {len(kv.disk)} layers", "disk", len(kv.disk) * layer_bytes, knob),
    )
    return [holding for holding in holdings if holding.nbytes]


def _kv_knob(settings: Config) -> str:
    return "context_tokens" if settings.kv_tokens is None else "kv_tokens"


def _context_tokens(model: ModelConfig, settings: Config) -> int:
    if settings.context_tokens is None:
        return min(model.max_positions, DEFAULT_CONTEXT_TOKENS)
    if settings.context_tokens > model.max_positions:
        raise ConfigError(
            f"context_tokens: the model was made for {model.max_positions} positions, have {settings.context_tokens}"
        )
    return settings.context_tokens


def _kv_tokens(settings: Config, context_tokens: int) -> int:
    if settings.kv_tokens is None:
        return context_tokens
    if settings.kv_tokens < context_tokens:
        raise ConfigError(
            f"kv_tokens: need at least the {context_tokens} of context_tokens, so that any request can be held alone, "
            f"have {settings.kv_tokens}"
        )
    return settings.kv_tokens
