"""What requests keep between passes: blocks and states on the device, and those that come and go, as a companion."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.core.budget import Slot
from actors.core.companion import Meeting, Rendezvous
from actors.core.event import Buffer, Event
from actors.core.message import READY, Message
from actors.core.ports import Copy
from pipeline.devices.memory import HostMemory
from pipeline.devices.port import Device
from pipeline.models.attention import LayerKV
from pipeline.models.delta_state import LayerState
from pipeline.state.cached import CachedPiece
from pipeline.state.cell_layout import CellLayout, cells_of, runs
from pipeline.state.kv_memory import KvMemory
from pipeline.state.kv_placement import KvPlacement
from pipeline.state.spilled_blocks import KV, SpilledBlocks


class KeyValueCache:
    """Keys and values of layers, or their recurrent states, by the layer's number: for the program and, as the port
    `Companion`, for the line that moves them.

    Every pass moves the same cells in layers that are alike and do not stay on the device: in, what its sequences look
    back at; out, what its tokens change. `bytes_in` and `bytes_out` count what was copied between host memory and the
    device. `lose` is told, by kind of layout, of each cell whose contents the disk has lost.
    """

    name = KV

    def __init__(
        self,
        layouts: Mapping[int, CellLayout],
        placement: KvPlacement,
        device: Device,
        folder: str | Path | None = None,
        *,
        lose: Mapping[type[CellLayout], Callable[[int], None]],
        ahead: bool = True,
        section: int | None = None,
    ) -> None:
        self.memory = KvMemory(layouts, placement, device, folder)
        self.rendezvous = Rendezvous(placement.moving, ahead=ahead, order=tuple(layouts))
        self.host_cells: Mapping[str, Sequence[Buffer]] = self.memory.host_cells
        self.device_cells: Sequence[Buffer] = self.memory.device_cells
        self.bytes_in = 0
        self.bytes_out = 0
        self._spilled = None
        if self.memory.spill is not None:
            self._spilled = SpilledBlocks(self.memory, self.memory.spill, lose, section)
        self._landing: set[asyncio.Event] = set()
        self._pieces: Sequence[CachedPiece] = ()
        self._moving = [*dict.fromkeys(layouts[layer] for layer in placement.moving)]
        self._cached: Mapping[CellLayout, Sequence[Copy]] = {}
        self._new: Mapping[CellLayout, Sequence[Copy]] = {}

    def begin(self, pieces: Sequence[CachedPiece]) -> None:
        """Say what the pass that begins now looks back at, and what it will write."""
        if self.rendezvous.layers:
            self._pieces = pieces
            self._cached = {layout: layout.cached_cells(pieces) for layout in self._moving}
            self._new = {layout: layout.new_cells(pieces) for layout in self._moving}
            self.rendezvous.begin()

    def layer(self, layer: int) -> tuple[LayerKV | LayerState, Event]:
        """What a layer keeps between passes, and the event of their arrival; after `prepare` of the rendezvous."""
        message = self.rendezvous.message(layer)
        return self.memory.view(layer, message), READY if message is None else message.event

    def attended(self, layer: int, event: Event) -> None:
        """Say that the attention of a layer was launched and ends with `event`.

        READY says that the pass is not needed any more: then nothing of it moves that has not begun to.
        """
        if event is READY:
            self._cached = self._new = dict.fromkeys(self._moving, ())
        self.rendezvous.used(layer, event)

    async def landed(self) -> None:
        """Wait until what passes have changed by now lies where it lives: in host memory, or on the disk."""
        for landing in tuple(self._landing):
            await landing.wait()

    def fail(self) -> None:
        """Forget the pass that was under way; the lines have stopped."""
        self.rendezvous.fail()
        self._land(*self._landing)
        if self._spilled is not None:
            self._spilled.forget()

    def reading(self, message: Message[Any], buffer: HostMemory) -> Coroutine[Any, Any, None] | None:
        """Read the blocks that this pass looks back at; None if they do not live on the disk."""
        if self._spilled is None or message.layer not in self.memory.spill_regions:
            return None
        return self._read(self._spilled, message.layer, buffer)

    def copies(self, message: Message[Any]) -> Sequence[Copy]:
        """The blocks that this pass looks back at."""
        return self._cached[self.memory.layouts[message.layer]]

    def arrived(self, message: Message[Slot]) -> Meeting:
        """Hand the blocks to the attention of their layer."""
        layout = self.memory.layouts[message.layer]
        if message.at.source is not None:
            self.bytes_in += sum(copy.length for copy in self._cached[layout])
        new = self._new[layout]
        landing = asyncio.Event()
        self._landing.add(landing)
        write_back = functools.partial(self._write_back, message.layer, new, self._pieces, landing)
        return self.rendezvous.meetings[message.layer].arrive(message, new, write_back)

    async def _read(self, spilled: SpilledBlocks, layer: int, buffer: HostMemory) -> None:
        await spilled.written(layer)
        await spilled.read(layer, self._cached[self.memory.layouts[layer]], buffer, self._pieces)

    async def _write_back(
        self,
        layer: int,
        new: Sequence[Copy],
        pieces: Sequence[CachedPiece],
        landing: asyncio.Event,
        buffer: HostMemory,
    ) -> None:
        if self.device_cells:
            self.bytes_out += sum(copy.length for copy in new)
        if self._spilled is not None and layer in self.memory.spill_regions:
            size = self.memory.layouts[layer].cell_bytes
            await self._spilled.write(layer, runs(cells_of(new, size), size), buffer, pieces)
        self._land(landing)

    def _land(self, *landed: asyncio.Event) -> None:
        for landing in landed:
            landing.set()
            self._landing.discard(landing)
