"""The part of the memory plan that KV blocks and recurrent states take: which layers' live in each place."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from pipeline.devices.port import Device
from pipeline.state.cell_layout import CellLayout
from pipeline.state.kv_placement import KvPlacement, place_kv
from pipeline.system.memory_plan import Holding

KNOBS = {"recurrent state": "max_requests", "state snapshots": "state_snapshots"}
"""The settings that change how much there is of what is no KV block."""


def place_layers(
    layouts: Mapping[int, CellLayout], device: Device, free: Mapping[str, int], *, on_disk: bool
) -> KvPlacement:
    """Without a disk host memory must do, and the check of the plan refuses what it cannot hold."""
    sizes = {layer: layout.layer_bytes for layer, layout in layouts.items()}
    rooms = [free[place.name] for place in device.places]
    return place_kv(sizes, rooms if on_disk else [sum(sizes.values()), *rooms[1:]])


def kv_holdings(
    layouts: Mapping[int, CellLayout], kv: KvPlacement, knob: str, device: Device, *, on_disk: bool
) -> list[Holding]:
    """Return what they take, place by place; `knob` is the setting that changes how many blocks there are."""
    first, last = device.places[0].name, device.places[-1].name
    or_disk = "" if on_disk else ", or set kv_disk"

    def living(layers: Sequence[int], place: str, hint: str) -> Iterator[Holding]:
        contents = [(name, nbytes) for layer in layers for name, nbytes in layouts[layer].contents.items() if nbytes]
        counts = Counter(name for name, _ in contents)
        for name, count in counts.items():
            nbytes = sum(nbytes for one, nbytes in contents if one == name)
            yield Holding(f"{name} of {count} layers", place, nbytes, f"{KNOBS.get(name, knob)}{hint}")

    def shared(slots: int, layers: Sequence[int], place: str, how: str) -> Iterator[Holding]:
        if slots:
            largest = max((layouts[layer] for layer in layers), key=lambda layout: layout.layer_bytes)
            what = " and ".join(dict.fromkeys(f"{layouts[layer].cell}s" for layer in layers))
            said = KNOBS.get(next(iter(largest.contents)), knob)
            yield Holding(f"{what}: {slots} layers {how}", place, slots * largest.layer_bytes, said)

    return [
        *living(kv.device, last, or_disk if last == first else ""),
        *shared(kv.device_slots, kv.moving, last, "take turns"),
        *living(kv.host, first, or_disk),
        *shared(kv.host_slots, kv.disk, first, "pass through"),
        *living(kv.disk, "disk", ""),
    ]
