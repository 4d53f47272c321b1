"""Where the KV line and the computation meet: once for every layer whose blocks move, in every pass."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.message import READY, Message, ended


class _Handover:
    """One layer in one pass."""

    def __init__(self) -> None:
        self.message: Message[Slot] | None = None
        self.arrived = asyncio.Event()
        self.launched = asyncio.Event()
        self.attended: Event = READY

    async def attention(self) -> Event:
        await self.launched.wait()
        return self.attended


class KvHandovers:
    """The half of the port `KeyValues` that waits.

    A layer's blocks are wanted when the attention of the layer before is launched: earlier they would keep copies from
    the H2D lane that are needed first. Without `ahead` they are wanted only when the layer before has ended.

    Each pass has handovers of its own, so that what is still on its way home from the last one meets nobody else.
    """

    def __init__(self, layers: Sequence[int], *, ahead: bool) -> None:
        self.layers = tuple(layers)
        self._ahead = ahead
        self._begun = asyncio.Event()
        self._handovers: dict[int, _Handover] = {}
        self._asked: dict[int, Event] = {}
        self._asked_more = asyncio.Event()

    def begin_pass(self) -> None:
        """Let the KV line plan the pass that begins now."""
        if self.layers:
            self._handovers = {layer: _Handover() for layer in self.layers}
            self._asked.clear()
            self._begun.set()

    def fail(self) -> None:
        """Forget the pass that was under way; the lines have stopped."""
        self._begun.clear()

    def prepare(self, layer: int) -> Coroutine[Any, Any, None] | None:
        """Wait until a layer's blocks are on their way to the device; None if they are, or do not move."""
        handover = self._handovers.get(layer)
        return None if handover is None or handover.arrived.is_set() else _set(handover.arrived)

    def message(self, layer: int) -> Message[Slot] | None:
        """A layer's blocks, after `prepare`; None for a layer whose blocks do not move."""
        return self._handovers[layer].message if layer in self._handovers else None

    def attended(self, layer: int, event: Event) -> None:
        """Say that the attention of a layer was launched and ends with `event`, or is not needed."""
        if layer in self._handovers:
            self._handovers[layer].attended = event
            self._handovers[layer].launched.set()
        if self._ahead:
            self._ask(layer + 1, READY)

    def computed(self, layer: int, event: Event) -> None:
        """Say that the second half of a layer was launched and ends with `event`."""
        if not self._ahead:
            self._ask(layer + 1, event)

    def _ask(self, layer: int, when: Event) -> None:
        self._asked[layer] = when
        self._asked_more.set()

    async def begun(self) -> None:
        """Wait until a pass has begun that nobody has waited for yet."""
        await self._begun.wait()
        self._begun.clear()

    async def wanted(self, layer: int) -> None:
        """Wait until the policy asks for a layer's blocks."""
        while layer > 0 and layer not in self._asked:
            self._asked_more.clear()
            await self._asked_more.wait()
        if layer > 0:
            await ended(self._asked[layer])

    def arrived(self, message: Message[Slot]) -> Callable[[], Awaitable[Event]]:
        """Hand a layer's blocks to its attention; what is returned waits for its launch, and gives its event."""
        handover = self._handovers[message.layer]
        handover.message = message
        handover.arrived.set()
        return handover.attention


async def _set(event: asyncio.Event) -> None:
    await event.wait()
