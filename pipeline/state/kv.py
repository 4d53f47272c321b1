"""The KV cache of all requests: blocks that stay on the device, and blocks that come and go."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.core.budget import Slot
from actors.core.errors import ActorFailed
from actors.core.event import Event
from actors.core.message import READY, Message
from actors.core.ports import Copy
from actors.kv_reader import KvReader
from actors.kv_swapper import KvSwapper
from pipeline.devices.memory import HostMemory, Memory
from pipeline.devices.port import Device
from pipeline.generation.batching import Piece
from pipeline.models.attention import LayerKV
from pipeline.state.kv_handover import KvHandovers
from pipeline.state.kv_layout import KvLayout
from pipeline.state.kv_placement import KvPlacement
from pipeline.state.spill_file import SpillError, SpillFile

logger = logging.getLogger("penstock")
SHARED = "shared"
"""The kind of the slots that layers take turns in."""


class KeyValueCache(KvHandovers):
    """Keys and values of all layers, all memory allocated once (rule 2).

    A layer that does not stay on the device lives in a host slot of its own or on the disk. In every pass it comes into
    a device slot, is attended to, and its new rows go home; the KV line moves it. `bytes_in` and `bytes_out` count
    what was copied between host memory and the device.
    """

    def __init__(
        self,
        layout: KvLayout,
        placement: KvPlacement,
        device: Device,
        folder: str | Path | None = None,
        *,
        ahead: bool = True,
    ) -> None:
        super().__init__(placement.moving, ahead=ahead)
        self.layout = layout
        self.placement = placement
        self.spill = None
        self.lose: Callable[[int], None] = lambda block: None
        self.bytes_in = 0
        self.bytes_out = 0
        self._staying = {
            layer: layout.view(device.device_memory(layout.layer_bytes).tensor) for layer in placement.device
        }
        self.host_cells: dict[str, Sequence[Memory]] = {
            self.host_kind(layer): [device.host_memory(layout.layer_bytes)] for layer in placement.host
        }
        if placement.host_slots:
            self.host_cells[SHARED] = [device.host_memory(layout.layer_bytes) for _ in range(placement.host_slots)]
        self.device_cells: dict[str, Sequence[Memory]] = {}
        if placement.device_slots:
            self.device_cells[SHARED] = [
                device.device_memory(layout.layer_bytes) for _ in range(placement.device_slots)
            ]
        self._spill_starts = {layer: index * layout.layer_bytes for index, layer in enumerate(placement.disk)}
        if placement.disk and folder is not None:
            self.spill = SpillFile(Path(folder), len(placement.disk) * layout.layer_bytes, layout.block_bytes)
        self._written = {layer: asyncio.Event() for layer in placement.disk}
        self._cached: list[Copy] = []
        self._rows: list[Copy] = []
        self._pieces: Sequence[Piece] = ()
        self._writers: dict[int, Sequence[Piece]] = {}
        self.fail()

    def close(self) -> None:
        """Give the room on the disk back, and let go of all memory; the KV line must have stopped."""
        self._staying.clear()
        if self.spill is not None:
            self.spill.close()

    def fail(self) -> None:
        """Forget the pass that was under way; the lines have stopped."""
        super().fail()
        for written in self._written.values():
            written.set()

    def begin(self, pieces: Sequence[Piece]) -> None:
        """Say what the pass that begins now looks back at, and what it will write."""
        if self.layers:
            self._pieces = pieces
            self._cached, self._rows = self.layout.cached_blocks(pieces), self.layout.new_rows(pieces)
            self.begin_pass()

    def layer(self, layer: int) -> tuple[LayerKV, Event]:
        """The keys and values of a layer, and the event of their arrival; after `prepare`."""
        message = self.message(layer)
        if message is None:
            return self._staying[layer], READY
        return self.layout.view(message.at.buffer.tensor), message.event

    def host_kind(self, layer: int) -> str:
        """The kind of host slot that a layer's blocks live in, or pass through."""
        return SHARED if layer in self.placement.disk else f"layer {layer}"

    def reading(self, layer: int, buffer: HostMemory) -> Coroutine[Any, Any, None] | None:
        """What reads the blocks of a layer that this pass looks back at; None if they do not live on the disk."""
        if self.spill is None or layer not in self._spill_starts:
            return None
        return self._read(self.spill, layer, buffer)

    def kind(self, layer: int, group: str) -> str:
        """All layers take turns in slots of one kind on the device."""
        return SHARED

    def copies(self, layer: int, group: str) -> Sequence[Copy]:
        """The blocks that this pass looks back at."""
        return self._cached

    def tensors(self, message: Message[Slot]) -> Mapping[str, Any]:
        """There are no tensors by name in KV blocks; see `layer`."""
        return {}

    def attended(self, layer: int, event: Event) -> None:
        """Say how the attention of a layer ends. When nobody needs it, nothing of this pass needs to move any more."""
        if event is READY:
            self._cached, self._rows = [], []
        super().attended(layer, event)

    def arrived(self, message: Message[Slot]) -> Callable[[], Awaitable[Event]]:
        """Hand a layer's blocks to its attention; what is returned waits for its launch, and gives its event."""
        if message.at.source is not None:
            self.bytes_in += sum(copy.length for copy in self._cached)
        self._writers[message.layer] = self._pieces
        return super().arrived(message)

    def new_rows(self) -> Sequence[Copy]:
        """What this pass writes in every layer."""
        return self._rows

    async def write_back(self, layer: int, buffer: HostMemory, rows: Sequence[Copy]) -> None:
        """See that the blocks with these rows, which have landed in `buffer`, are where they live."""
        if self.placement.device_slots:
            self.bytes_out += sum(row.length for row in rows)
        if self.spill is not None and layer in self._spill_starts:
            blocks = self.layout.runs(self.layout.blocks_of(rows))
            try:
                await self.spill.write(self._spill_starts[layer], blocks, buffer.view)
            except OSError as error:
                logger.warning("writing KV blocks of layer %d failed, trying once more: %s", layer, error)
                await self._each(self.spill.write, layer, blocks, buffer, KvSwapper.name, self._writers[layer])
            self._written[layer].set()

    async def _read(self, spill: SpillFile, layer: int, buffer: HostMemory) -> None:
        """Behind the write of the pass before, which may still be under way: it has another slot."""
        await self._written[layer].wait()
        self._written[layer].clear()
        cached, pieces = self._cached, self._pieces
        try:
            await spill.read(self._spill_starts[layer], cached, buffer.view)
        except (OSError, SpillError) as error:
            logger.warning("reading KV blocks of layer %d failed, trying once more: %s", layer, error)
            await self._each(spill.read, layer, cached, buffer, KvReader.name, pieces)

    async def _each(
        self,
        move: Callable[[int, Sequence[Copy], memoryview], Awaitable[None]],
        layer: int,
        runs: Sequence[Copy],
        buffer: HostMemory,
        actor: str,
        pieces: Sequence[Piece],
    ) -> None:
        """Read or write the blocks one by one: requests of the pass that hold one which fails end, and they alone."""
        size = self.layout.block_bytes
        for offset in (
            offset for run in runs for offset in range(run.source_offset, run.source_offset + run.length, size)
        ):
            try:
                await move(self._spill_starts[layer], (Copy(offset, offset, size),), buffer.view)
            except (OSError, SpillError) as error:
                self.lose(offset // size)
                for piece in pieces:
                    if offset // size in piece.sequence.blocks:
                        piece.sequence.fail(ActorFailed(actor, layer, "kv", error))
