"""Simulated passes that several sections compute in turn, each the layers of its own."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.core.budget import Slot
from actors.core.crew import Over
from actors.core.event import Event
from actors.core.message import GroupKey, Message
from pipeline.engine.relay import Relay
from pipeline.tools.simulation.timings import Order, Timings
from pipeline.tools.simulation.world import SimPass, SimProgram
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionRates:
    """How many times as fast as the timings say a section reads from the disk, uploads and computes.

    Where groups have only one hop, `disk` is its rate.
    """

    disk: float = 1.0
    link: float = 1.0
    compute: float = 1.0


@dataclass(frozen=True, slots=True)
class SectionTimings:
    """The times of the groups of one section, at the rates of that section."""

    whole: Timings
    order: Order
    rates: SectionRates

    @property
    def one_link(self) -> bool:
        """As for the whole."""
        return self.whole.one_link

    @property
    def check_seconds(self) -> float:
        """As for the whole."""
        return self.whole.check_seconds

    @property
    def kv_seconds(self) -> float:
        """The seconds that the KV blocks of a layer take over the section's link."""
        return self.whole.kv_seconds / self.rates.link

    def begin_seconds(self, pass_: int) -> float:
        """As for the whole."""
        return self.whole.begin_seconds(pass_)

    def seconds(self, actor: str, pass_: int, key: GroupKey) -> float:
        """Return the seconds of the whole, divided by the section's rate."""
        rate = {DISK: self.rates.disk, LINK: self.rates.link, COMPUTE: self.rates.compute}[actor]
        return self.whole.seconds(actor, pass_, key) / rate


class SimPasses:
    """Which pass stands where. There may be `in_flight` of them, each with a relay of its own.

    The production engine has one pass in flight. More are here to be compared with it: a pass begins when the pass
    that many before it has ended, as its requests are those of that one.
    """

    def __init__(self, order: Order, owners: Mapping[GroupKey, int], *, hop_seconds: float, in_flight: int) -> None:
        self.hop_seconds = hop_seconds
        self.first, self.last = owners[order[0]], owners[order[-1]]
        self.began: list[float] = []
        self.ended: list[float] = []
        self._relays = [Relay(order, owners) for _ in range(in_flight)]
        self._hops = defaultdict[int, frozenset[GroupKey]](frozenset)
        for before, key in itertools.pairwise(order):
            if owners[before] != owners[key]:
                self._hops[owners[key]] |= {key}
        self._begun: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._ends: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.standing: dict[int, Sequence[Event]] = {}
        """By the index of a pass that is under way, the last event of each of its parts."""

    def hops(self, section: int) -> frozenset[GroupKey]:
        """The groups of a section before which a pass comes from another one."""
        return self._hops[section]

    def relay(self, index: int) -> Relay:
        """The relay of a pass."""
        return self._relays[index % len(self._relays)]

    async def vacant(self, index: int) -> None:
        """Wait until the pass may begin: its tokens come out of the last section, and go back to the first."""
        if index >= len(self._relays):
            await self.at_end(index - len(self._relays))
            await asyncio.sleep(self.hop_seconds * (self.first != self.last))

    def begin(self, index: int) -> None:
        """Let a pass stand before the first group."""
        self.began.append(asyncio.get_running_loop().time())
        self.relay(index).begin()
        self._begun[index].set()

    async def begun(self, index: int) -> None:
        """Wait until the pass has begun."""
        await self._begun[index].wait()

    async def at_end(self, index: int) -> None:
        """Wait until all of the pass was computed."""
        await self._ends[index].wait()

    def let_end(self, over: Over, passes: int) -> None:
        """Let a run be over when so many passes have ended."""
        self._over, self._passes = over, passes

    def end(self, index: int) -> None:
        """Say that all of the pass was computed."""
        self.ended.append(asyncio.get_running_loop().time())
        del self.standing[index]
        self._ends[index].set()
        if len(self.ended) == self._passes and not self._over.done():
            self._over.set_result(None)


class SimSection(SimProgram):
    """The program of one section's line. A part of a pass that comes from another section is behind a hop.

    A hop takes its seconds, and keeps nothing busy: neither a lane nor another hop. Parts of a pass share one lane for
    both halves: beside each other they take as long as one behind the other.
    """

    def __init__(self, passes: SimPasses, number: int, *args: Any) -> None:
        super().__init__(*args)
        self._whole, self._number = passes, number
        self._lanes = dict.fromkeys(self.order, "compute")
        self.hops = passes.hops(number)
        self._hop_count = 0

    async def begin(self) -> SimPass:
        """The first section begins the pass, the others wait for it."""
        index = len(self.passes)
        if self._number == self._whole.first:
            await self._whole.vacant(index)
            pass_ = await super().begin()
            self._whole.begin(index)
            return pass_
        await self._whole.begun(index)
        return self._new_pass()

    async def arrive(self, pass_: SimPass, message: Message[Slot]) -> None:
        """Wait until the pass stands before the group; its parts come behind a hop."""
        await self._whole.relay(pass_.index).reached(message.key)
        pass_.parts[:] = map(self._hop, self._whole.standing[pass_.index])

    def step(self, pass_: SimPass, message: Message[Slot]) -> Sequence[Event]:
        """Compute, and hand the pass on."""
        ran = super().step(pass_, message)
        self._whole.standing[pass_.index] = tuple(pass_.parts)
        self._whole.relay(pass_.index).left(message.key)
        return ran

    async def finish(self, pass_: SimPass) -> None:
        """Wait for the section's last step; behind the last of all the pass has ended."""
        await super().finish(pass_)
        if self._number == self._whole.last:
            self._whole.end(pass_.index)

    def _hop(self, part: Event) -> Event:
        self._hop_count += 1
        return self._device.launch(f"hop {self._hop_count}", lambda: self._whole.hop_seconds, (part,))
