"""The part of the memory plan that KV blocks take: which layers' blocks live in each place."""

from collections.abc import Mapping, Sequence

from pipeline.devices.port import Device
from pipeline.state.cell_layout import CellLayout
from pipeline.state.kv_placement import KvPlacement, place_kv
from pipeline.system.memory_plan import Holding


def place_layers(
    layouts: Sequence[CellLayout], device: Device, free: Mapping[str, int], *, on_disk: bool
) -> KvPlacement:
    """Without a disk host memory must do, and the check of the plan refuses what it cannot hold."""
    sizes = [layout.layer_bytes for layout in layouts]
    rooms = [free[place.name] for place in device.places]
    return place_kv(sizes, rooms if on_disk else [sum(sizes), *rooms[1:]])


def kv_holdings(
    layouts: Sequence[CellLayout], kv: KvPlacement, knob: str, device: Device, *, on_disk: bool
) -> list[Holding]:
    """Return what they take, place by place; `knob` is the setting that changes how many blocks there are."""
    or_disk = knob if on_disk else f"{knob}, or set kv_disk"
    first, last = device.places[0].name, device.places[-1].name
    sizes = [layout.layer_bytes for layout in layouts]
    on_device, in_host, on_the_disk = (sum(sizes[one] for one in layers) for layers in (kv.device, kv.host, kv.disk))
    taking_turns, passing = (max((sizes[one] for one in layers), default=0) for layers in (kv.moving, kv.disk))
    device_knob = or_disk if last == first else knob
    holdings = (
        Holding(f"KV blocks of {len(kv.device)} layers", last, on_device, device_knob),
        Holding(f"KV blocks: {kv.device_slots} layers take turns", last, kv.device_slots * taking_turns, knob),
        Holding(f"KV blocks of {len(kv.host)} layers", first, in_host, or_disk),
        Holding(f"KV blocks: {kv.host_slots} layers pass through", first, kv.host_slots * passing, knob),
        Holding(f"KV blocks of {len(kv.disk)} layers", "disk", on_the_disk, knob),
    )
    return [holding for holding in holdings if holding.nbytes]
