"""The memory of all KV blocks: all of it is taken when a model is opened, none later (rule 2)."""

from collections.abc import Sequence
from pathlib import Path

from actors.core.budget import Slot
from actors.core.companion import SHARED, own_kind
from actors.core.message import Message
from pipeline.devices.memory import Memory
from pipeline.devices.port import Device
from pipeline.models.attention import LayerKV
from pipeline.state.kv_layout import KvLayout
from pipeline.state.kv_placement import KvPlacement
from pipeline.state.spill_file import SpillFile


class KvMemory:
    """A layer's blocks stay on the device, live in a host slot of their own, or in the spill file.

    `host_cells` are by kind of slot. Layers from the disk take turns in shared ones, and all that move in
    `device_cells`, where host and device memory differ.
    """

    def __init__(
        self, layout: KvLayout, placement: KvPlacement, device: Device, folder: str | Path | None = None
    ) -> None:
        self.layout = layout
        self.placement = placement
        nbytes = layout.layer_bytes
        self._staying = {layer: layout.view(device.device_memory(nbytes).tensor) for layer in placement.device}
        self.host_cells: dict[str, Sequence[Memory]] = {
            own_kind(layer): [device.host_memory(nbytes)] for layer in placement.host
        }
        if placement.host_slots:
            self.host_cells[SHARED] = [device.host_memory(nbytes) for _ in range(placement.host_slots)]
        self.device_cells = [device.device_memory(nbytes) for _ in range(placement.device_slots)]
        self.spill_starts = {layer: index * nbytes for index, layer in enumerate(placement.disk)}
        self.spill = None
        if placement.disk and folder is not None:
            self.spill = SpillFile(Path(folder), len(placement.disk) * nbytes, layout.block_bytes)

    def view(self, layer: int, message: Message[Slot] | None) -> LayerKV:
        """The keys and values of a layer: in the slot of its message, or, without one, where they stay."""
        return self._staying[layer] if message is None else self.layout.view(message.at.buffer.tensor)

    def close(self) -> None:
        """Give the room on the disk back, and let go of all memory; the lines must have stopped."""
        self._staying.clear()
        if self.spill is not None:
            self.spill.close()
