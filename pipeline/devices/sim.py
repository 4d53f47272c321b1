"""A device that need not be here: plans are made for its numbers, and its work only takes virtual time."""

import asyncio
import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

from actors.core.chained import parts
from actors.core.event import Buffer, Event
from actors.core.message import ended
from actors.core.ports import Copy
from pipeline.devices.port import TWO_PLACES, Device, Place

if TYPE_CHECKING:
    import torch

ROUNDING_SECONDS = 1e-9
"""Sums of seconds that should meet may miss each other by their last bits."""


class SimEvent:
    """An operation whose start and end are known when it is submitted."""

    def __init__(self, started: float, ended: float, error: BaseException | None = None) -> None:
        self._started = started
        self.ended = ended
        self._error = error

    @property
    def error(self) -> BaseException | None:
        """Why the operation failed, once it has ended."""
        return self._error if self.done() else None

    @property
    def span(self) -> tuple[float, float] | None:
        """When the operation ran; None while it runs."""
        return (self._started, self.ended) if self.done() else None

    def done(self) -> bool:
        """Whether the virtual clock has passed the end."""
        return asyncio.get_running_loop().time() >= self.ended - ROUNDING_SECONDS

    async def wait(self) -> None:
        """Wait for the end; raises the operation's error."""
        loop = asyncio.get_running_loop()
        if not self.done():
            await asyncio.sleep(self.ended - loop.time())
        if self._error is not None:
            raise self._error


class SimDevice:
    """Uploads and downloads take bytes / rate, and `launch` takes the seconds that its work returns.

    `memory` says by place how many bytes there are; without a number there is all that settings say.
    """

    shares_cores = False
    pools: Mapping[str, str] = {}

    def __init__(
        self,
        places: Sequence[Place] = TWO_PLACES,
        *,
        alignment_bytes: int | None = None,
        block_rows: int = 256,
        repeated_rows: Sequence[int] = (),
        record_bytes: Mapping[str, int] | None = None,
        loads_later: Mapping[str, int] | None = None,
        memory: Mapping[str, int] | None = None,
        h2d_bytes_per_second: float = math.inf,
        d2h_bytes_per_second: float = 0.0,
    ) -> None:
        self.places = places
        self.alignment_bytes = alignment_bytes
        self.block_rows = block_rows
        self.repeated_rows = repeated_rows
        self.record_bytes: Mapping[str, int] = record_bytes or {}
        self.loads_later: Mapping[str, int] = loads_later or {}
        self._memory = memory or {}
        self._rates = {"h2d": h2d_bytes_per_second, "d2h": d2h_bytes_per_second or h2d_bytes_per_second}
        self._free_at: defaultdict[str, float] = defaultdict(float)
        self._handed_on = itertools.count()

    @classmethod
    def like(cls, device: Device, memory: Mapping[str, int]) -> Self:
        """A device like another one, with that much memory."""
        return cls(
            device.places,
            alignment_bytes=device.alignment_bytes,
            block_rows=device.block_rows,
            repeated_rows=device.repeated_rows,
            record_bytes=device.record_bytes,
            loads_later=device.loads_later,
            memory=memory,
        )

    @property
    def torch_device(self) -> "torch.device":
        """Torch's device without memory: nothing is computed here."""
        import torch  # here, so that simulation needs no torch

        return torch.device("meta")

    def least_rows(self, dtype: "torch.dtype") -> int:
        """The most that any device asks for."""
        return 2

    def memory_bytes(self, place: Place) -> tuple[int, int]:
        """All of it is free."""
        return (self._memory.get(place.name, sys.maxsize),) * 2

    def link_bytes_per_second(self) -> None:
        """Nothing is measured."""

    def touched_bytes(self, pool: str) -> int:
        """No memory is taken."""
        return 0

    def have_run(self) -> None:
        """No libraries are loaded."""

    def host_memory(self, nbytes: int) -> Buffer:
        """A name for memory that a simulation does not need."""
        return _SimMemory(nbytes)

    def plain_memory(self, nbytes: int) -> Buffer:
        """A name for memory that a simulation does not need."""
        return _SimMemory(nbytes)

    def seen(self, memory: Buffer) -> "torch.Tensor":
        """Nothing is computed here."""
        raise NotImplementedError

    def device_memory(self, nbytes: int) -> Buffer:
        """A name for memory that a simulation does not need."""
        return _SimMemory(nbytes)

    def upload(
        self,
        source: Buffer,
        target: Buffer,
        copies: Sequence[Copy],
        after: Sequence[Event],
        vacant: Event | None = None,
    ) -> Event:
        """Occupy the H2D link for as long as the bytes need; bytes that are there already need none of it."""
        if source is target:
            return self._submit(f"none {next(self._handed_on)}", lambda: 0.0, after, vacant)
        seconds = sum(copy.length for copy in copies) / self._rates["h2d"]
        return self._submit("h2d", lambda: seconds, after, vacant)

    def download(self, source: Buffer, target: Buffer, copies: Sequence[Copy], after: Sequence[Event]) -> Event:
        """Occupy the D2H link for as long as the bytes need."""
        seconds = sum(copy.length for copy in copies) / self._rates["d2h"]
        return self._submit("d2h", lambda: seconds, after)

    def launch(
        self,
        lane: str,
        work: Callable[[], object],
        after: Sequence[Event],
        repeats: Hashable | None = None,
        *,
        short: bool = False,
    ) -> Event:
        """Occupy the lane for the seconds that `work` returns."""
        return self._submit(lane, work, after)

    async def ended_soon(self, event: Event) -> None:
        """As for any other event."""
        await ended(event)

    async def aclose(self) -> None:
        """Nothing runs and nothing is held."""

    def free(self) -> None:
        """Nothing is held."""

    def _submit(
        self, lane: str, work: Callable[[], object], after: Sequence[Event], vacant: Event | None = None
    ) -> SimEvent:
        started = max(asyncio.get_running_loop().time(), self._free_at[lane])
        for reader in parts(vacant):
            if isinstance(reader, SimEvent):
                started = max(started, reader.ended)
        error = None
        for earlier in parts(*after):
            if isinstance(earlier, SimEvent):
                started = max(started, earlier.ended)
                error = error or earlier._error
            elif not earlier.done():
                raise TypeError(f"a simulated lane can wait only for simulated events, not for {earlier!r}")
            else:
                error = error or earlier.error
        seconds = 0.0
        if error is None:
            try:
                seconds = float(work())  # type: ignore[arg-type]
            except Exception as failure:
                error = failure
        self._free_at[lane] = started + seconds
        return SimEvent(started, started + seconds, error)


class _SimMemory:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
