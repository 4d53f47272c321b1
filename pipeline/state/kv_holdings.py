"""The part of the memory plan that KV blocks take: which layers' blocks live in each place."""

from collections.abc import Mapping

from pipeline.devices.port import Device
from pipeline.state.kv_layout import KvLayout
from pipeline.state.kv_placement import KvPlacement, place_kv
from pipeline.system.memory_plan import Holding


def place_layers(
    layers: int, layer_bytes: int, device: Device, free: Mapping[str, int], *, on_disk: bool
) -> KvPlacement:
    """Without a disk host memory must do, and the check of the plan refuses what it cannot hold."""
    rooms = [free[place.name] // layer_bytes for place in device.places]
    return place_kv(layers, rooms if on_disk else [layers, *rooms[1:]])


def kv_holdings(layout: KvLayout, kv: KvPlacement, knob: str, device: Device, *, on_disk: bool) -> list[Holding]:
    """Return what they take, place by place; `knob` is the setting that changes how many blocks there are."""
    or_disk = knob if on_disk else f"{knob}, or set kv_disk"
    first, last, layer_bytes = device.places[0].name, device.places[-1].name, layout.layer_bytes
    on_device = or_disk if last == first else knob
    holdings = (
        Holding(f"KV blocks of {len(kv.device)} layers", last, len(kv.device) * layer_bytes, on_device),
        Holding(f"KV blocks: {kv.device_slots} layers take turns", last, kv.device_slots * layer_bytes, knob),
        Holding(f"KV blocks of {len(kv.host)} layers", first, len(kv.host) * layer_bytes, or_disk),
        Holding(f"KV blocks: {kv.host_slots} layers pass through", first, kv.host_slots * layer_bytes, knob),
        Holding(f"KV blocks of {len(kv.disk)} layers", "disk", len(kv.disk) * layer_bytes, knob),
    )
    return [holding for holding in holdings if holding.nbytes]
