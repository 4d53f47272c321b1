"""A simulated disk, catalog and program, for the production actors to run against."""

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from actors.core.budget import Slot
from actors.core.companion import Meeting, Rendezvous, own_kind
from actors.core.event import Buffer, Event
from actors.core.message import READY, GroupKey, Message, ended
from actors.core.order import lanes
from actors.core.ports import Copy, PrefetchPolicy, Program
from pipeline.devices.port import Device
from pipeline.formats.parts import attends
from pipeline.groups.slot_kinds import SlotKinds
from pipeline.state.kv_placement import MOST_SHARED
from pipeline.tools.simulation.timings import Timings
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK

BYTES_PER_SECOND = 1e9
"""Simulated copies are as long as they take: one byte is one nanosecond."""


Computed: TypeAlias = Counter[GroupKey]
"""How often each group was computed: for that pass it moves, once or twice, unless it may move a pass ahead."""


class SimCatalog:
    """Groups that are known by how long they take, and by the `kinds` of slot that they need."""

    def __init__(self, timings: Timings, kinds: SlotKinds, *, computed: Computed | None = None) -> None:
        self._timings = timings
        self._kinds = kinds
        self._computed = computed
        self._uploads: Counter[GroupKey] = Counter()

    def kind(self, key: GroupKey) -> str:
        """Return the kind of slot, as the real catalog does."""
        return self._kinds.of[key]

    def copies(self, key: GroupKey) -> Sequence[Copy]:
        """One copy, for the next upload of the group."""
        pass_ = (self._uploads if self._computed is None else self._computed)[key]
        self._uploads[key] += 1
        seconds = self._timings.seconds(LINK, pass_, key)
        return (Copy(0, 0, round(seconds * BYTES_PER_SECOND)),)

    def tensors(self, message: Message[Slot]) -> Mapping[str, Any]:
        """Nothing is in a simulated slot."""
        return {}


class SimDisk:
    """A disk that serves one read after the other, first come first served."""

    def __init__(self, timings: Timings, *, computed: Computed | None = None) -> None:
        self._timings = timings
        self._computed = computed
        self._reads: Counter[GroupKey] = Counter()
        self._free_at = 0.0

    async def read_into(self, key: GroupKey, buffer: Buffer) -> None:
        """Take as long as the group's next read needs."""
        loop = asyncio.get_running_loop()
        pass_ = (self._reads if self._computed is None else self._computed)[key]
        self._reads[key] += 1
        seconds = self._timings.seconds(DISK, pass_, key)
        self._free_at = max(loop.time(), self._free_at) + seconds
        await asyncio.sleep(self._free_at - loop.time())


class SimCompanion:
    """KV blocks that live in host memory, but for those of the first layer, which `place_kv` keeps on the device."""

    name = "kv"

    def __init__(self, timings: Timings, device: Device, *, ahead: bool) -> None:
        layers = [layer for layer, group in timings.order if attends(group)]
        _, *moving = layers
        self.rendezvous = Rendezvous(moving, ahead=ahead, order=layers)
        self.host_cells: Mapping[str, Sequence[Buffer]] = {own_kind(layer): [device.host_memory(0)] for layer in moving}
        self.device_cells: Sequence[Buffer] = [device.device_memory(0) for _ in range(MOST_SHARED)]
        self._copies = (Copy(0, 0, round(timings.kv_seconds * BYTES_PER_SECOND)),)

    def reading(self, message: Message[Any], buffer: Buffer) -> None:
        """Nothing is on the disk."""

    def copies(self, message: Message[Any]) -> Sequence[Copy]:
        """Return all blocks as one run."""
        return self._copies

    def arrived(self, message: Message[Slot]) -> Meeting:
        """Let new rows take as long to go as blocks to come."""
        return self.rendezvous.meetings[message.layer].arrive(message, self._copies, self.write_back)

    async def write_back(self, buffer: Buffer) -> None:
        """Nothing is on the disk."""


@dataclass(slots=True)
class SimPass:
    """One simulated pass: when it began, what was computed, and the latest event of every micro-batch."""

    index: int
    began: float
    parts: list[Event]
    steps: list[GroupKey] = field(default_factory=list)


class SimProgram(Program):
    """A program that computes for as long as the timings say."""

    def __init__(
        self,
        device: Device,
        timings: Timings,
        policy: PrefetchPolicy,
        work: Callable[[GroupKey], float] | None = None,
        pass_tokens: int | None = None,
        rendezvous: Rendezvous | None = None,
        computed: Computed | None = None,
    ) -> None:
        self.order = timings.order
        self._lanes = lanes(self.order)
        self.passes: list[SimPass] = []
        self.computed = Counter() if computed is None else computed
        self._device = device
        self._timings = timings
        self._micro_batches = min(policy.micro_batches, pass_tokens or policy.micro_batches)
        self._work = work
        self._rendezvous = rendezvous or Rendezvous((), ahead=True)

    async def begin(self) -> SimPass:
        """Begin once the host has something to compute."""
        await asyncio.sleep(self._timings.begin_seconds(len(self.passes)))
        return self._new_pass()

    def prepare(self, pass_: SimPass, message: Message[Slot]) -> Coroutine[Any, Any, None] | None:
        """Wait until the KV blocks of the layer are on their way."""
        return self._rendezvous.prepare(message.layer) if attends(message.group) else None

    async def check_in(self, pass_: SimPass, message: Message[Slot]) -> None:
        """Wait for the device and the group, and then for as long as a check takes."""
        for part in pass_.parts:
            await ended(part)
        await ended(message.event)
        await asyncio.sleep(self._timings.check_seconds)

    def step(self, pass_: SimPass, message: Message[Slot]) -> Sequence[Event]:
        """Occupy the lane of the half, micro-batch by micro-batch."""
        pass_.steps.append(message.key)
        self.computed[message.key] += 1
        lane = "compute" if len(pass_.parts) == 1 else self._lanes[message.key]
        needs: list[Event] = [message.event]
        kv = self._rendezvous.message(message.layer) if attends(message.group) else None
        if kv is not None:
            needs.append(kv.event)
        ran: list[Event] = []
        seconds = functools.partial(self._seconds, pass_, message)
        for part, before in enumerate(pass_.parts):
            # After the part before, whose lane it shares: so that the failure of one is the failure of all.
            ran.append(self._device.launch(lane, seconds, (*needs, before, *ran[-1:])))
            pass_.parts[part] = ran[-1]
        tell = self._rendezvous.used if attends(message.group) else self._rendezvous.computed
        tell(message.layer, ran[-1])
        return ran

    async def finish(self, pass_: SimPass) -> None:
        """Wait for the last step."""
        for part in pass_.parts:
            await part.wait()

    def _new_pass(self) -> SimPass:
        parts: list[Event] = [READY] * self._micro_batches
        self.passes.append(SimPass(len(self.passes), asyncio.get_running_loop().time(), parts))
        self._rendezvous.begin()
        return self.passes[-1]

    def _seconds(self, pass_: SimPass, message: Message[Slot]) -> float:
        key = message.key
        whole = self._work(key) if self._work else self._timings.seconds(COMPUTE, pass_.index, key)
        return whole / len(pass_.parts)
