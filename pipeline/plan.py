"""The one memory plan: window, KV blocks, activations and logits added up, holder by holder, before any is taken."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipeline.config import Config
from pipeline.devices.open import AnyDevice
from pipeline.errors import ConfigError
from pipeline.memory import (
    Holding,
    MemoryPlan,
    available_host_bytes,
    free_disk_bytes,
    parse_bytes,
    resident_bytes,
    slot_counts,
)
from pipeline.models.config import ModelConfig
from pipeline.sequences.blocks import blocks_for
from pipeline.sequences.kv_layout import KvLayout
from pipeline.sequences.kv_placement import FEWEST, KvPlacement, place_kv, place_kv_in_one
from pipeline.sequences.pass_inputs import PassInputs
from pipeline.weights.catalog import WeightCatalog
from pipeline.weights.groups import WeightGroups

DEFAULT_CONTEXT_TOKENS = 4096
Slots = Mapping[str, tuple[int, int]]
"""By kind of slot: how many, and of how many bytes each."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an open model holds, and where."""

    memory: MemoryPlan
    context_tokens: int
    host_slots: Slots
    device_slots: Slots
    kv_layout: KvLayout
    kv: KvPlacement


def make_plan(
    model: ModelConfig,
    settings: Config,
    groups: WeightGroups,
    catalog: WeightCatalog,
    device: AnyDevice,
    dtype: torch.dtype,
) -> Plan:
    """Add everything up. KV blocks get what is left: the device first, then host memory, then the disk.

    Raises ConfigError with need, have and knob for what cannot fit.
    """
    context_tokens = _context_tokens(model, settings)
    layout = KvLayout.of(model, blocks_for(_kv_tokens(settings, context_tokens)), dtype)
    host_slots, device_slots = weight_slots(settings, catalog, device)
    fixed = (
        Holding("Python, torch and what was there before", "host", resident_bytes(), ""),
        *(
            Holding("kernels and workspaces, loaded later", place, size, "")
            for place, size in device.loads_later.items()
        ),
        *_slots("host", host_slots, "gpu_groups" if device.unified else "host_groups"),
        *_slots("device", device_slots, "gpu_groups"),
        *_per_pass(model, settings, groups, device, dtype, layout, context_tokens),
    )
    available = _available(settings, device, fixed)
    free = {place: have - sum(one.nbytes for one in fixed if one.place == place) for place, have in available.items()}
    placement = _place(model.layers, layout.layer_bytes, settings, device, free)
    kv = _kv(layout.layer_bytes, placement, settings, device)
    return Plan(MemoryPlan((*fixed, *kv), available), context_tokens, host_slots, device_slots, layout, placement)


def weight_slots(settings: Config, catalog: WeightCatalog, device: AnyDevice) -> tuple[Slots, Slots]:
    """The slots in host memory and on the device.

    Memory that is one has one budget: the uploader hands the slot on, and the group budget bounds the host slots.
    """
    host_bytes, device_bytes = catalog.slot_bytes("host"), catalog.slot_bytes("device")
    on_device = slot_counts(settings.gpu_groups, two_kinds=catalog.two_kinds)
    if device.unified:
        return {kind: (count, host_bytes[kind]) for kind, count in on_device.items()}, {}
    in_host = slot_counts(settings.host_groups, two_kinds=catalog.two_kinds)
    return (
        {kind: (count, host_bytes[kind]) for kind, count in in_host.items()},
        {kind: (count, device_bytes[kind]) for kind, count in on_device.items()},
    )


def _slots(place: str, slots: Slots, knob: str) -> list[Holding]:
    return [Holding(f"{count} {kind} slots", place, count * size, knob) for kind, (count, size) in slots.items()]


def _per_pass(
    model: ModelConfig,
    settings: Config,
    groups: WeightGroups,
    device: AnyDevice,
    dtype: torch.dtype,
    layout: KvLayout,
    context_tokens: int,
) -> list[Holding]:
    """What computing takes beside weights and KV blocks."""
    place = "host" if device.unified else "device"
    tokens = settings.max_tokens_per_pass
    rows = tokens * groups.embed.length // groups.embed.shape[0]
    logits = settings.max_requests * model.vocabulary_size * torch.float32.itemsize
    activations = tokens * (4 * model.hidden_size + 3 * model.ffn_size) * max(dtype.itemsize, 4)
    inputs = PassInputs.nbytes(tokens, settings.max_requests, context_tokens)
    return [
        *(Holding("embedding rows", where, rows, "max_tokens_per_pass") for where in ("host", place)),
        Holding("activations", place, activations, "max_tokens_per_pass"),
        Holding(
            "activations: KV of one request and layer", place, 2 * context_tokens * layout.row_bytes, "context_tokens"
        ),
        *(Holding("logits", where, logits, "max_requests") for where in ("host", place)),
        *(Holding("positions and block tables", where, inputs, "max_requests") for where in ("host", place)),
    ]


def _available(settings: Config, device: AnyDevice, fixed: tuple[Holding, ...]) -> dict[str, int]:
    """What each place has: what is there, or what the settings allow if that is less."""
    host = available_host_bytes() + resident_bytes()
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
    return available


def _place(layers: int, layer_bytes: int, settings: Config, device: AnyDevice, free: Mapping[str, int]) -> KvPlacement:
    """Where there is no room, the smallest placement, which the check of the plan refuses with its numbers."""
    host_room = max(0, free["host"]) // layer_bytes
    everything = tuple(range(layers))
    if device.unified:
        if settings.kv_disk is None:
            return place_kv_in_one(layers, layers) or KvPlacement(everything, (), (), 0, 0)
        return place_kv_in_one(layers, host_room) or KvPlacement((), (), everything, 0, min(FEWEST, layers))
    if settings.kv_disk is None:
        host_room = layers
    smallest = KvPlacement((), everything, (), min(FEWEST, layers), 0)
    if settings.kv_disk is not None:
        smallest = KvPlacement((), (), everything, min(FEWEST, layers), min(FEWEST, layers))
    return place_kv(layers, max(0, free["device"]) // layer_bytes, host_room) or smallest


def _kv(layer_bytes: int, kv: KvPlacement, settings: Config, device: AnyDevice) -> list[Holding]:
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
