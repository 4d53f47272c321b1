"""The line of experts on virtual time, memory that knows whose bytes it holds, and computations that look."""

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.core.budget import Budget, Slot
from actors.core.event import Event
from actors.core.expert_cache import EvictionPolicy, ExpertCache, LeastRecentlyUsed, kept_slots, request
from actors.core.expert_counts import Uses
from actors.core.expert_store import ExpertStore, Split
from actors.core.line import Line, running
from actors.core.message import GroupKey, Message, ended
from actors.core.ports import Copy, Perhaps
from actors.core.trace import Trace
from actors.expert_keeper import ExpertKeeper
from actors.expert_planner import ExpertPlanner
from actors.expert_reader import ExpertReader
from actors.expert_uploader import ExpertUploader
from pipeline.devices.sim import SimDevice

HOST = "expert host"
Wanted = tuple[int, Sequence[int], bool]
"""A layer, the experts that it wants, and whether they are streamed."""


class Memory:
    """A piece of memory; `group` is whose bytes are in it, None while they are written."""

    group: GroupKey | None = None


def part(index: int) -> str:
    return f"expert.{index}"


class Disk:
    """Reads take `seconds`, as many at a time as it has lanes; those of groups that are `lost` fail, once each."""

    def __init__(self, seconds: Callable[[], float], lanes: int = 1000) -> None:
        self.seconds = seconds
        self.lanes = asyncio.Semaphore(lanes)
        self.lost: set[GroupKey] = set()
        self.reads: list[GroupKey] = []
        self.began: dict[GroupKey, float] = {}
        self.reading = 0
        self.rests = asyncio.Event()

    async def read_while_idle(self, key: GroupKey, buffer: Memory, guess: Perhaps) -> None:
        guess.decided = self.rests.set
        while self.reading and guess.wanted is None:
            self.rests.clear()
            await self.rests.wait()
        if guess.goes_on():
            guess.begun = True
            await self._read(key, buffer, guess)

    async def read_into(self, key: GroupKey, buffer: Memory) -> None:
        await self._read(key, buffer, None)

    async def _read(self, key: GroupKey, buffer: Memory, guess: Perhaps | None) -> None:
        """A guess is read in ten steps."""
        self.reads.append(key)
        self.began[key] = asyncio.get_running_loop().time()
        buffer.group = None
        self.reading += 1
        async with self.lanes:
            seconds = self.seconds()
            for _ in range(1 if guess is None else 10):
                if guess is None or guess.goes_on():
                    await asyncio.sleep(seconds if guess is None else seconds / 10)
        self.reading -= 1
        self.rests.set()
        while key in self.lost and guess is not None and guess.wanted is None:
            self.rests.clear()
            await self.rests.wait()
        if guess is None or guess.goes_on():
            if key in self.lost:
                self.lost.remove(key)
                raise OSError("lost")
            buffer.group = key


class Accelerator(SimDevice):
    """Copies whose bytes a memory holds, but for `lost` groups, once each, and looks at them while it computes."""

    def __init__(self, copy_seconds: float) -> None:
        super().__init__(h2d_bytes_per_second=1 / copy_seconds)
        self.faults: list[str] = []
        self.lost: set[GroupKey] = set()

    def upload(self, source: Any, target: Any, copies: Any, after: Any, vacant: Event | None = None) -> Event:
        if source is target:
            return super().upload(source, target, copies, after, vacant)
        held = source.group
        if held in self.lost:
            self.lost.remove(held)
            return self.launch("h2d", lambda: 1 / 0, after)
        event = super().upload(source, target, copies, after, vacant)
        self._at(event, 0.0, lambda: setattr(target, "group", None))
        self._at(event, 1.0, lambda: setattr(target, "group", held if source.group == held else None))
        return event

    def compute(self, messages: Sequence[Message[Slot]], seconds: float) -> Event:
        """On the device, or where all of them lie in host memory, beside it."""
        lane = "cpu" if {message.at.place for message in messages} == {HOST} else "compute"
        event = self.launch(lane, lambda: seconds, [message.event for message in messages])
        for message in messages:
            for share in (0.01, 0.99):
                self._at(event, share, lambda one=message: self._look(one))  # type: ignore[misc]
        return event

    def _look(self, message: Message[Slot]) -> None:
        if message.at.buffer.group != message.key:
            self.faults.append(f"{message.key} is computed with the bytes of {message.at.buffer.group}")

    @staticmethod
    def _at(event: Event, share: float, action: Callable[[], None]) -> None:
        if event.error is None:
            started, done = event._started, event.ended  # type: ignore[attr-defined]
            asyncio.get_running_loop().call_at(started + share * (done - started), action)


def by_place(messages: Sequence[Message[Slot]]) -> list[list[Message[Slot]]]:
    """Those that lie in host memory, and the others, as a program computes them."""
    on_host = [message for message in messages if message.at.place == HOST]
    return [some for some in (on_host, [one for one in messages if one not in on_host]) if some]


class Catalog:
    def kind(self, key: GroupKey) -> str:
        return "expert"

    def copies(self, key: GroupKey) -> Sequence[Copy]:
        return (Copy(0, 0, 1),)


@dataclass
class ExpertWorld:
    line: Line
    store: ExpertStore
    budgets: Sequence[Budget]
    disk: Disk
    device: Accelerator
    given: list[list[GroupKey]] = field(default_factory=list)
    on_host: list[Collection[int]] = field(default_factory=list)

    def want(self, wanted: Wanted, split: Split | None = None) -> None:
        """Ask the store, and take note of what is left on the host."""
        layer, experts, streamed = wanted
        self.on_host.append(())

        def noted(kept: Sequence[int], read: Sequence[int]) -> Collection[int]:
            self.on_host[-1] = split(kept, read) if split is not None else ()
            return self.on_host[-1]

        self.store.want(layer, experts, streamed=streamed, split=noted)

    async def compute(
        self,
        wanted: Sequence[Wanted],
        hints: Sequence[Sequence[int]] = (),
        seconds: float = 0.1,
        guesses: Sequence[Sequence[int]] = (),
        split: Split | None = None,
        at_once: int | None = None,
    ) -> None:
        """Let a program compute layers; between two it waits for the router. With the n-th it hints at the next one,
        or guesses. `at_once` are launched at most, where a launch takes so long for each; else all.
        """
        for position, one in enumerate(wanted):
            self.want(one, split)
            if position < len(hints):
                self.store.hint(wanted[position + 1][0], hints[position])
            if position < len(guesses):
                self.store.guess(wanted[position + 1][0], guesses[position])
            left, events = len(one[1]), list[Event]()
            while left:
                messages = await self.store.arrived(at_once)
                self.given.append([message.key for message in messages])
                left -= len(messages)
                for some in by_place(messages):
                    events.append(self.device.compute(some, seconds * (1 if at_once is None else len(some))))
                    self.store.used(some, events[-1])
                if at_once is not None and len(events) > 1:
                    await ended(events[-2])
            for event in events:
                await ended(event)

    async def run(self, wanted: Sequence[Wanted], **options: Any) -> None:
        """The same beside the line; raises its failure. Whatever happens, all slots are back."""
        try:
            async with running((self.line,)) as over:
                program = asyncio.ensure_future(self.compute(wanted, **options))
                await asyncio.wait((program, over), return_when=asyncio.FIRST_COMPLETED)
                if program.cancel():
                    failure = over.result()
                    raise failure if failure is not None else AssertionError("the line has ended")
                program.result()
        finally:
            self.store.fail()
            assert [budget.statistics().held for budget in self.budgets] == [0] * len(self.budgets)


def expert_world(
    slots: Sequence[int],
    *,
    experts: int,
    policy: Callable[[], EvictionPolicy] | None = LeastRecentlyUsed,
    window: int = 8,
    queue: int = 8,
    read_seconds: Callable[[], float] = lambda: 1.0,
    lanes: int = 1000,
    copy_seconds: float = 0.1,
    trace: Trace | None = None,
) -> ExpertWorld:
    """A line with so many slots in the one place, or in host memory and on the device, on the running loop."""
    clock = asyncio.get_running_loop().time
    names = (HOST, "expert device")
    budgets = [
        Budget(name, {"expert": [Memory() for _ in range(count)]}, clock)
        for name, count in zip(names, slots, strict=False)
    ]
    store = ExpertStore(budgets, experts, part, window, policy)
    disk, device = Disk(read_seconds, lanes), Accelerator(copy_seconds)
    line = (
        Line(ExpertPlanner(store), catalog=Catalog(), clock=clock, trace=trace)  # type: ignore[arg-type]
        .then(ExpertReader(disk, budgets[0], store), queue=queue)
        .then(ExpertUploader(device, budgets[1] if len(budgets) > 1 else None, store), queue=queue)
        .then(ExpertKeeper(store), queue=queue)
    )
    return ExpertWorld(line, store, budgets, disk, device)


def replayed(
    slots: Sequence[int],
    wanted: Iterable[Wanted],
    *,
    experts: int,
    policy: Callable[[], EvictionPolicy] | None = LeastRecentlyUsed,
    window: int = 8,
    on_host: Sequence[Collection[int]] = (),
) -> list[dict[int, Uses]]:
    """What caches of so many slots have of what is wanted, of which some is left `on_host`: by place, then by layer."""
    caches = [ExpertCache(kept_slots(count, experts, window), policy() if policy else None) for count in slots]
    counts: list[dict[int, Uses]] = [{} for _ in caches]
    for (layer, indices, streamed), left in itertools.zip_longest(wanted, on_host, fillvalue=()):
        asked = request(caches, layer, indices, streamed=streamed, on_host=left)
        for uses, found in zip(counts, asked, strict=True):
            one = uses.setdefault(layer, Uses())
            one.hits += 0 if streamed else len(found.hits)
            one.misses += 0 if streamed else len(found.misses)
            one.streamed_hits += len(found.hits) if streamed else 0
            one.streamed_misses += len(found.misses) if streamed else 0
    return counts
