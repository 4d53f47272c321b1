"""The KV cache of all requests as the program sees it: blocks that stay on the device, and blocks that come and go."""

from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from actors.core.companion import Rendezvous
from actors.core.event import Event
from actors.core.message import READY
from pipeline.devices.port import Device
from pipeline.models.attention import LayerKV
from pipeline.state.cached import CachedPiece
from pipeline.state.kv_companion import KvCompanion
from pipeline.state.kv_layout import KvLayout
from pipeline.state.kv_memory import KvMemory
from pipeline.state.kv_placement import KvPlacement


class KeyValueCache:
    """Keys and values of all layers.

    A layer that does not stay on the device comes into a device slot in every pass, is attended to, and its new rows
    go back to where it lives. Its `companion` is what the line sees that moves it.
    """

    def __init__(
        self,
        layout: KvLayout,
        placement: KvPlacement,
        device: Device,
        folder: str | Path | None = None,
        *,
        lose: Callable[[int], None],
        ahead: bool = True,
    ) -> None:
        self.memory = KvMemory(layout, placement, device, folder)
        self._rendezvous = Rendezvous(placement.moving, ahead=ahead)
        self.companion = KvCompanion(self.memory, self._rendezvous, lose)

    def begin(self, pieces: Sequence[CachedPiece]) -> None:
        """Say whose tokens the pass computes that begins now."""
        if self._rendezvous.layers:
            self.companion.begin(pieces)

    def prepare(self, layer: int) -> Coroutine[Any, Any, None] | None:
        """Wait until a layer's blocks are on their way to the device; None if they are, or do not move."""
        return self._rendezvous.prepare(layer)

    def layer(self, layer: int) -> tuple[LayerKV, Event]:
        """The keys and values of a layer, and the event of their arrival; after `prepare`."""
        message = self._rendezvous.message(layer)
        return self.memory.view(layer, message), READY if message is None else message.event

    def attended(self, layer: int, event: Event) -> None:
        """Say that the attention of a layer was launched and ends with `event`; READY where it is not needed."""
        if event is READY:
            self.companion.abandon()
        self._rendezvous.used(layer, event)

    def computed(self, layer: int, event: Event) -> None:
        """Say that the second half of a layer was launched and ends with `event`."""
        self._rendezvous.computed(layer, event)

    def fail(self) -> None:
        """Forget the pass that was under way; the lines have stopped."""
        self.companion.fail()

    def close(self) -> None:
        """Give the room on the disk back, and let go of all memory; the lines must have stopped."""
        self.memory.close()
