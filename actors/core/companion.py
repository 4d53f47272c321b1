"""Bytes that computations need beside their weights, KV blocks for example: the port, and where both sides meet.

A companion has a line of its own, which brings its bytes to the device and takes back what was changed. The program
launches the computations. Both sides meet in a `Rendezvous`, for each layer in each pass.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from actors.core.budget import Slot
from actors.core.event import Buffer, Event
from actors.core.message import READY, Message, ended
from actors.core.ports import Copy

SHARED = "shared"
"""The kind of slots in which bytes take turns."""


def own_kind(layer: int) -> str:
    """The kind of the one host slot in which the bytes of a layer live."""
    return f"layer {layer}"


class Meeting:
    """One layer in one pass: its bytes come from the line, the computation that uses them from the program.

    Attributes:
        message: the bytes, from when they are on their way to the device; None before.
        changed: what the computation changes, as runs of bytes of the slot. Set with the message.
        write_back: writes what was changed to where it lives, from a host slot into which it has been copied.
    """

    changed: Sequence[Copy]
    write_back: Callable[[Buffer], Awaitable[None]]

    def __init__(self) -> None:
        self.message: Message[Slot] | None = None
        self._arrived = asyncio.Event()
        self._launched = asyncio.Event()
        self._computation: Event = READY

    def arrive(
        self, message: Message[Slot], changed: Sequence[Copy], write_back: Callable[[Buffer], Awaitable[None]]
    ) -> "Meeting":
        """Take the bytes, which are on their way now."""
        self.message, self.changed, self.write_back = message, changed, write_back
        self._arrived.set()
        return self

    async def arrival(self) -> None:
        """Wait until the bytes are on their way to the device."""
        await self._arrived.wait()

    def launch(self, computation: Event) -> None:
        """Take the event of the end of the computation that was launched."""
        self._computation = computation
        self._launched.set()

    async def computation(self) -> Event:
        """Wait until the computation is launched; returns the event of its end."""
        await self._launched.wait()
        return self._computation


class Companion(Protocol):
    """Bytes that computations need beside their weights, as the actors see them that move them.

    Attributes:
        name: what they are: the actors ("kv_reader"), the messages and the budgets ("kv host") of the line bear it.
        rendezvous: where the line meets the computations.
        host_cells: host memory by kind of slot: the own kind of each layer that lives there, and one that others share.
        device_cells: device memory in which all take turns; empty where host and device memory are the same.
    """

    name: str
    rendezvous: "Rendezvous"
    host_cells: Mapping[str, Sequence[Buffer]]
    device_cells: Sequence[Buffer]

    def reading(self, message: Message[Any], buffer: Buffer) -> Coroutine[Any, Any, None] | None:
        """Read the message's bytes from the disk into a host slot; None if they do not live on the disk.

        The coroutine waits until the pass before has written them back.
        """

    def copies(self, message: Message[Any]) -> Sequence[Copy]:
        """Say what to copy from the host slot to the same place in the device slot."""

    def arrived(self, message: Message[Slot]) -> Meeting:
        """Hand over bytes that are on their way to the device; returns their meeting with the computation."""


class Rendezvous:
    """Where a companion's line and the computations meet. Every pass has `meetings` of its own, one for each layer.

    So bytes of the last pass that are still on their way back cannot meet a computation of the present one.

    Bytes of a layer are asked for when the layer before uses its own: earlier they would keep copies from the H2D lane
    that are needed first. Without `ahead` they are asked for when the layer before has ended.
    """

    def __init__(self, layers: Sequence[int], *, ahead: bool, order: Sequence[int] | None = None) -> None:
        """`layers` are those whose bytes move, of all in the `order` in which they are computed.

        Without an order these are 0, 1, 2 and so on.
        """
        self.layers = tuple(layers)
        order = range(max(layers, default=0) + 1) if order is None else order
        self._first = order[0]
        self._following = dict(itertools.pairwise(order))
        self._ahead = ahead
        self._unplanned: deque[int] = deque()
        self.meetings: dict[int, Meeting] = {}
        self._asked: dict[int, Event] = {}
        self._more = asyncio.Event()

    def begin(self) -> None:
        """Let the line plan the pass that begins now."""
        self.meetings = {layer: Meeting() for layer in self.layers}
        self._unplanned = deque(self.layers)
        self._asked = {self._first: READY}
        self._more.set()

    def fail(self) -> None:
        """Forget the pass that was under way; the lines have stopped."""
        self._unplanned.clear()

    async def next_layer(self) -> int:
        """Wait until the bytes of another layer are asked for; returns the layer. Passes follow one another."""
        while not (self._unplanned and self._unplanned[0] in self._asked):
            self._more.clear()
            await self._more.wait()
        layer = self._unplanned.popleft()
        await ended(self._asked[layer])
        return layer

    def prepare(self, layer: int) -> Coroutine[Any, Any, None] | None:
        """Wait until the bytes of a layer are on their way to the device; None if they are, or do not move."""
        meeting = self.meetings.get(layer)
        return None if meeting is None or meeting.message is not None else meeting.arrival()

    def message(self, layer: int) -> Message[Slot] | None:
        """The bytes of a layer, after `prepare`; None for a layer whose bytes do not move."""
        return self.meetings[layer].message if layer in self.meetings else None

    def used(self, layer: int, event: Event) -> None:
        """Say that the computation that uses a layer's bytes was launched and ends with `event`, or is not needed."""
        if layer in self.meetings:
            self.meetings[layer].launch(event)
        if self._ahead:
            self._ask(layer, READY)

    def computed(self, layer: int, event: Event) -> None:
        """Say that the last computation of a layer was launched and ends with `event`."""
        if not self._ahead:
            self._ask(layer, event)

    def _ask(self, before: int, when: Event) -> None:
        """Ask for the bytes of the layer behind this one."""
        if (layer := self._following.get(before)) is not None:
            self._asked[layer] = when
            self._more.set()
