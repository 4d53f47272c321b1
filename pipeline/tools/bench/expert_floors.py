"""Measures, on a runtime whose lines never run, what experts cost: computing those in place, and reading in bursts."""

import asyncio
import contextlib
import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator

from actors.core.message import READY, GroupKey, Message
from pipeline.engine.expert_line import ExpertLine
from pipeline.engine.expert_room import KIND
from pipeline.generation.build import ModelRuntime
from pipeline.tools.bench.floors import Floors, Loaded, spread_tokens
from pipeline.tools.bench.forecast import MeasuredCompute


class ExpertFloors:
    """Measures what experts add to a pass over `some` layers, and how fast a layer's experts are read.

    The store of the runtime must keep none, so that each that is wanted is asked for.
    """

    def __init__(self, runtime: ModelRuntime, line: ExpertLine, floors: Floors, some: Loaded) -> None:
        self._runtime, self._line, self._floors, self._some = runtime, line, floors, some
        self._rates: list[float] = []
        self._seconds: defaultdict[int, list[float]] = defaultdict(list)

    async def fill(self) -> None:
        """Put weights into all slots: any expert that is wanted is computed with those that lie in some slot."""
        host, last = self._line.budgets[0], self._line.budgets[-1]
        catalog, slots = self._line.room.catalog, []
        for key in catalog.order[: sum(last.slots.values())]:
            slots.append(slot := await last.acquire(KIND))
            staging = slot if host is last else await host.acquire(KIND)
            await self._line.source.read_into(key, staging.buffer)
            if staging is not slot:
                await self._runtime.device.upload(staging.buffer, slot.buffer, catalog.copies(key), ()).wait()
                staging.release(after=READY)
        for slot in slots:
            slot.release(after=READY)

    async def measure(self, tokens: int, read_seconds: float) -> None:
        """Compute a pass of so many tokens without experts and with them, twice; then read."""
        lengths = spread_tokens(tokens, min(tokens, self._runtime.settings.max_requests))
        took: dict[bool, float] = {}
        used = 0
        async with self._arriving():
            for experts in (False, True, False, True):
                before, started = self._used, time.perf_counter()
                await self._floors.compute(self._some, lengths, experts=experts)
                took[experts], used = time.perf_counter() - started, self._used - before
        self._seconds[tokens].append(max(0.0, took[True] - took[False]) / used)
        self._rates.append(await self._bursts(read_seconds))

    def compute(self) -> MeasuredCompute:
        """Seconds for each parameter of an expert that is used, by tokens of the pass; more never take less."""
        catalog, found = self._line.room.catalog, dict[int, float]()
        parameters = sum(catalog.parameters().values()) / len(catalog.order)
        for tokens, seconds in self._seconds.items():
            found[tokens] = max(*found.values(), statistics.median(seconds) / parameters, 0.0)
        return MeasuredCompute(found)

    @property
    def bytes_per_second(self) -> float:
        """The rate of reading experts."""
        return statistics.median(self._rates)

    @property
    def _used(self) -> int:
        return sum(one.experts for one in self._line.store.statistics().unions.values())

    @contextlib.asynccontextmanager
    async def _arriving(self) -> AsyncIterator[None]:
        """Every expert that is wanted arrives at once, in whichever slot is free."""
        store, last = self._line.store, self._line.budgets[-1]

        async def arrive() -> None:
            for seq in itertools.count():
                layer, part, _ = await store.next()
                store.arrive(Message(layer, part, seq, await last.acquire(KIND), READY))

        arriving = asyncio.create_task(arrive(), name="penstock experts in place")
        try:
            yield
        finally:
            arriving.cancel()
            await asyncio.wait([arriving])

    async def _bursts(self, seconds: float) -> float:
        """Read as many experts as a token uses of a layer, wait for all, and so on; bytes per second.

        Between two bursts nothing is read, as while the next layer's router is computed.
        """
        catalog, budget = self._line.room.catalog, self._line.budgets[0]
        layers = len({layer for layer, _ in catalog.order})
        burst = min(self._runtime.config.chosen_experts // layers, sum(budget.slots.values()))
        keys = itertools.cycle(random.Random(len(self._rates)).sample(catalog.order, len(catalog.order)))

        async def read(key: GroupKey) -> None:
            slot = await budget.acquire(KIND)
            try:
                await self._line.source.read_into(key, slot.buffer)
            finally:
                slot.release(after=READY)

        bursts, started = 0, time.perf_counter()
        while not bursts or time.perf_counter() - started < seconds:
            await asyncio.gather(*(read(next(keys)) for _ in range(burst)))
            bursts += 1
        return catalog.needed_bytes / len(catalog.order) * burst * bursts / (time.perf_counter() - started)


async def expert_floors(runtime: ModelRuntime, floors: Floors, some: Loaded) -> ExpertFloors | None:
    """Ready to be measured; None for a model without experts."""
    if runtime.expert_line is None:
        return None
    experts = ExpertFloors(runtime, runtime.expert_line, floors, some)
    await experts.fill()
    return experts
