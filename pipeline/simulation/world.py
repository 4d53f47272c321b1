"""A simulated disk, catalog and program, for the production actors to run against."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.core.budget import Slot
from actors.core.message import Message
from actors.core.ports import Buffer, Device, Event


@dataclass(frozen=True, slots=True)
class SimCopy:
    """All bytes of a group as one run."""

    length: int
    source_offset: int = 0
    target_offset: int = 0


class SimCatalog:
    """Groups that are known by their size only: `nbytes` by group name ("attn", "ffn", ...)."""

    def __init__(self, nbytes: Mapping[str, int]) -> None:
        self._nbytes = dict(nbytes)

    def kind(self, layer: int, group: str) -> str:
        """Every group name is a kind of slot of its own."""
        return group

    def copies(self, layer: int, group: str) -> Sequence[SimCopy]:
        """One copy of the group's size."""
        return (SimCopy(self._nbytes[group]),)

    def tensors(self, message: Message[Slot]) -> Mapping[str, Any]:
        """Nothing is in a simulated slot."""
        return {}


class SimDisk:
    """A disk that serves one read after the other at `bytes_per_second`, first come first served."""

    def __init__(self, nbytes: Mapping[str, int], bytes_per_second: float) -> None:
        self._nbytes = dict(nbytes)
        self._rate = bytes_per_second
        self._free_at = 0.0

    async def read_into(self, layer: int, group: str, buffer: Buffer) -> None:
        """Take as long as the group's bytes need."""
        loop = asyncio.get_running_loop()
        self._free_at = max(loop.time(), self._free_at) + self._nbytes[group] / self._rate
        await asyncio.sleep(self._free_at - loop.time())


@dataclass(slots=True)
class SimPass:
    """What a simulated pass has seen: when it began, and the event of its last step."""

    began: float
    last: Event | None = None
    steps: list[tuple[int, str]] = field(default_factory=list)


class SimProgram:
    """A program whose groups take `seconds(layer, group)` to compute."""

    def __init__(self, device: Device, groups_per_pass: int, seconds: Callable[[int, str], float]) -> None:
        self._device = device
        self.groups_per_pass = groups_per_pass
        self._seconds = seconds
        self.passes: list[SimPass] = []

    async def begin(self) -> SimPass:
        """Begin at once: there is always work."""
        self.passes.append(SimPass(asyncio.get_running_loop().time()))
        return self.passes[-1]

    def step(self, pass_: SimPass, message: Message[Slot]) -> Event:
        """Occupy the compute lane."""
        layer, group = message.layer, message.group
        pass_.steps.append((layer, group))
        pass_.last = self._device.launch("compute", lambda: self._seconds(layer, group), (message.event,))
        return pass_.last

    async def finish(self, pass_: SimPass) -> None:
        """Wait for the last step."""
        if pass_.last is not None:
            await pass_.last.wait()
