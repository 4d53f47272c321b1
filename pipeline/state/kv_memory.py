"""The memory of all KV blocks and recurrent states: all of it is taken when a model is opened, none later (rule 2)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.core.budget import Slot
from actors.core.companion import SHARED, own_kind
from actors.core.message import Message
from pipeline.devices.memory import Memory
from pipeline.devices.port import Device
from pipeline.models.attention import LayerKV
from pipeline.models.delta_state import LayerState
from pipeline.state.cell_layout import CellLayout
from pipeline.state.kv_placement import KvPlacement
from pipeline.state.spill_file import Region, SpillFile


class KvMemory:
    """By the number of a layer, its cells: on the device, in a host slot of their own, or in the spill file.

    `staying` are those on the device, and `host_cells` by kind of slot. Layers from the disk take turns in shared
    ones, and all that move in `device_cells`, where host and device memory differ: slots as large as the largest of
    these layers.
    """

    def __init__(
        self,
        layouts: Mapping[int, CellLayout],
        placement: KvPlacement,
        device: Device,
        folder: str | Path | None = None,
    ) -> None:
        self.layouts = layouts
        self.placement = placement
        sizes = {layer: layout.layer_bytes for layer, layout in layouts.items()}
        self.staying: dict[int, Memory] = {layer: device.device_memory(sizes[layer]) for layer in placement.device}
        self._views = {layer: layouts[layer].view(memory.tensor) for layer, memory in self.staying.items()}
        self.host_cells: dict[str, Sequence[Memory]] = {
            own_kind(layer): [device.host_memory(sizes[layer])] for layer in placement.host
        }
        if placement.host_slots:
            largest = max(sizes[layer] for layer in placement.disk)
            self.host_cells[SHARED] = [device.host_memory(largest) for _ in range(placement.host_slots)]
        largest = max((sizes[layer] for layer in placement.moving), default=0)
        self.device_cells = [device.device_memory(largest) for _ in range(placement.device_slots)]
        self.spill_regions: dict[int, Region] = {}
        spilled_bytes = 0
        for layer in placement.disk:
            self.spill_regions[layer] = Region(spilled_bytes, layouts[layer].cell_bytes, layouts[layer].cell)
            spilled_bytes += sizes[layer]
        self.spill = None
        if placement.disk and folder is not None:
            self.spill = SpillFile(Path(folder), spilled_bytes)

    def view(self, layer: int, message: Message[Slot] | None) -> LayerKV | LayerState:
        """Return what a layer keeps between passes: in the slot of its message, or, without one, where they stay."""
        return self._views[layer] if message is None else self.layouts[layer].view(message.at.buffer.tensor)

    def close(self) -> None:
        """Give the room on the disk back, and let go of all memory; the lines must have stopped."""
        self._views.clear()
        self.staying.clear()
        if self.spill is not None:
            self.spill.close()
