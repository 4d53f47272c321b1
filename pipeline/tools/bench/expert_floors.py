"""Measures, on a runtime whose lines do not run, what experts cost: computing those in place, and fetching others."""

import asyncio
import itertools
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from actors.core.line import running
from actors.core.message import READY, GroupKey
from pipeline.devices.open import open_device
from pipeline.engine.expert_line import ExpertLine
from pipeline.engine.expert_room import KIND
from pipeline.formats.parts import EXPERT, kind_of
from pipeline.generation.expert_split import MOST_ROWS, ProductSeconds
from pipeline.generation.host_experts import HostExperts
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.tools.bench.expert_passes import ExpertPasses, experts_in_place
from pipeline.tools.bench.floors import Floors, Loaded, spread_tokens
from pipeline.tools.bench.forecast import ExpertWaits, MeasuredCompute, Rates

PASSES = 6
"""That have their experts read, of which the first two are not counted."""


@dataclass(frozen=True, slots=True)
class _Added:
    """What experts added to a pass: seconds; how many were used, in how many layers."""

    seconds: float
    used: int
    layers: int


class ExpertFloors:
    """Measures what experts add to a pass over `some` layers, and how fast a layer's experts are read.

    The store of the runtime must keep none, so that each that is wanted is asked for.
    """

    def __init__(self, runtime: ModelRuntime, line: ExpertLine, floors: Floors, some: Loaded) -> None:
        self._runtime, self._line, self._floors, self._some = runtime, line, floors, some
        layers = len({layer for layer, _ in line.room.catalog.order})
        chosen = runtime.config.chosen_experts // layers
        self._burst = min(chosen, sum(line.budgets[0].slots.values()))
        self._read: defaultdict[int, list[float]] = defaultdict(list)
        self._added: defaultdict[int, list[_Added]] = defaultdict(list)

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

    async def measure(self, tokens: int) -> None:
        """Compute passes of so many tokens, whose experts are there."""
        async with experts_in_place(self._line):
            await self._add(tokens)
            self._added[tokens].append(await self._add(tokens))

    async def read(self, seconds: float) -> None:
        """Read one at a time, then a layer's at a time; between two layers' nothing, as while a router is computed."""
        for count in {1, self._burst}:
            self._read[count].append(await self._burst_seconds(count, seconds))

    def compute(self) -> MeasuredCompute:
        """Seconds for each parameter of an expert that is used, by tokens of the pass; more never take less."""
        found = dict[int, float]()
        for tokens in self._added:
            each = median(one.seconds / one.used for one in self._warm(tokens)) / self._parameters
            found[tokens] = max(*found.values(), each, 0.0)
        return MeasuredCompute(found)

    async def waits(self, tokens: int, passes: ExpertPasses | None, apart: Rates) -> ExpertWaits:
        """How much longer a layer takes for what is read and copied, by whole passes where these were measured.

        Of those the first that is read takes what one takes beside copies of the others, and each that is copied what
        its copy does; what all take together says the rest. Else by passes over some layers, through the line that
        fetches experts alone. `apart` has what else was measured, each by itself.
        """
        copy = self._bytes / apart.h2d_bytes_per_second if apart.h2d_bytes_per_second else 0.0
        if passes is None:
            return ExpertWaits(*self._shared_out(*await self._wait_seconds(tokens)), copy, copy)
        layers, used, there = passes.layers, passes.used, passes.there_seconds
        one, all_, copied = (
            max(0.0, seconds - there) / layers
            for seconds in (passes.reading_one_seconds, passes.reading_seconds, passes.copying_seconds)
        )
        more = max(0.0, all_ - one) / (used - 1) if used > 1 else one
        copy = min(copy, copied / used)
        added = apart.computes[EXPERT].seconds(0, round(self._parameters), tokens)
        beside = there - self._dense_seconds(apart, tokens) - layers * used * added
        return ExpertWaits(one, more, copied - (used - 1) * copy, copy, beside / layers)

    def _dense_seconds(self, apart: Rates, tokens: int) -> float:
        """What a pass takes whose groups all stay and whose layers have no experts."""
        catalog = self._runtime.catalog
        sizes, parameters = catalog.group_bytes(catalog.places[0]), catalog.parameters()
        computes = (
            apart.computes[kind_of(group[1])].seconds(sizes[group], parameters[group], tokens)
            for group in catalog.order
        )
        return apart.begin_seconds + sum(computes)

    async def _wait_seconds(self, tokens: int) -> tuple[float, float]:
        """How much longer a layer takes when all that it uses is read, and how many that are."""
        async with running([self._runtime.wired.lines[-1]]):
            came = [await self._add(tokens) for _ in range(PASSES)][2:]
        layers = came[0].layers
        longer = median(one.seconds for one in came) - median(one.seconds for one in self._warm(tokens))
        return max(0.0, longer) / layers, came[0].used / layers

    def _shared_out(self, seconds: float, used: float) -> tuple[float, float]:
        """Of the seconds that a layer waits for so many experts, those for the first and for each more.

        They grow as their reading alone does, from one to all.
        """
        first, all_ = median(self._read[1]), median(self._read[self._burst])
        more = max(0.0, all_ - first) / max(1, self._burst - 1)
        share = seconds / (first + more * (used - 1))
        return first * share, more * share

    def products(self) -> ProductSeconds | None:
        """What experts take on the CPU beside a device; None where the CPU is the device."""
        runtime, room = self._runtime, self._line.room
        if len(runtime.device.places) == 1:
            return None
        place, cpu = self._line.budgets[0].name, open_device("cpu")
        host = HostExperts(runtime.config, room.catalog, place, runtime.device, cpu, runtime.dtype, MOST_ROWS)
        return host.product_seconds(runtime.config.expert_kinds[0], self._line.host_slots)

    def _warm(self, tokens: int) -> Sequence[_Added]:
        """What was measured, but for the first round, in which a GPU records its launches."""
        return self._added[tokens][1:] or self._added[tokens]

    @property
    def _bytes(self) -> float:
        return self._line.room.catalog.needed_bytes / self._line.room.count

    @property
    def _parameters(self) -> float:
        catalog = self._line.room.catalog
        return sum(catalog.parameters().values()) / len(catalog.order)

    async def _add(self, tokens: int) -> _Added:
        """A pass without its experts, then one with them; of requests that decode, where there are enough."""
        lengths = spread_tokens(tokens, min(tokens, self._runtime.settings.max_requests))
        seconds = []
        before = self._wanted()
        for experts in (False, True):
            started = time.perf_counter()
            if max(lengths) > 1:
                await self._floors.compute(self._some, lengths, experts=experts)
                seconds.append(time.perf_counter() - started)
            else:
                seconds.append((await self._floors.decoded(self._some, tokens, experts=experts))[0])
        used, layers = (now - then for now, then in zip(self._wanted(), before, strict=True))
        return _Added(max(0.0, seconds[1] - seconds[0]), used, layers)

    def _wanted(self) -> Sequence[int]:
        """How many experts layers have wanted, and how many times a layer has."""
        unions = self._line.store.statistics().unions.values()
        return sum(one.experts for one in unions), sum(one.passes for one in unions)

    async def _burst_seconds(self, count: int, seconds: float) -> float:
        """The seconds until so many experts that are read at once have come."""
        catalog, budget = self._line.room.catalog, self._line.budgets[0]
        keys = itertools.cycle(random.Random(len(self._read[count])).sample(catalog.order, len(catalog.order)))

        async def read(key: GroupKey) -> None:
            slot = await budget.acquire(KIND)
            try:
                await self._line.source.read_into(key, slot.buffer)
            finally:
                slot.release(after=READY)

        bursts, started = 0, time.perf_counter()
        while not bursts or time.perf_counter() - started < seconds:
            await asyncio.gather(*(read(next(keys)) for _ in range(count)))
            bursts += 1
        return (time.perf_counter() - started) / bursts


async def expert_floors(runtime: ModelRuntime, floors: Floors, some: Loaded) -> ExpertFloors | None:
    """Ready to be measured; None for a model without experts."""
    if runtime.expert_line is None:
        return None
    experts = ExpertFloors(runtime, runtime.expert_line, floors, some)
    await experts.fill()
    return experts
