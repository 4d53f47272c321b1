"""Random mixtures beside the line of the weights: none hangs, budgets are kept, every slot is back, whatever happens.

A hundred, a thousand where everything is tested. A line that stands still is a `Deadlock` here, and hangs nothing.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import pytest
from support.cases import EVERYTHING
from support.expert_lines import Catalog, Disk, ExpertWorld, Memory, Wanted, by_place, expert_world, part, replayed

from actors.compute_scheduler import ComputeScheduler
from actors.core.budget import Budget, Slot
from actors.core.errors import ActorFailed
from actors.core.event import Event
from actors.core.expert_cache import EvictionPolicy, LeastFrequentlyUsed, LeastRecentlyUsed, Pinned, kept_slots
from actors.core.line import Line, running
from actors.core.message import READY, GroupKey, Message, ended
from actors.core.ports import Program
from actors.disk_reader import DiskReader
from actors.gpu_uploader import GpuUploader
from actors.pinned_stager import PinnedStager
from actors.prefetch_planner import PrefetchPlanner
from pipeline.tools.simulation.loop import run_virtual

SETTINGS, BLOCK = (1000 if EVERYTHING else 100), 50
TOLD_OF_ITSELF = (547, 674)
"""Mixtures of one layer: what it will want next is asked for while the host computes the same experts."""
MOST_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What is computed, by pass and layer, and what it is given; `hints` are right that often, if there are any.

    They are certain, or guesses.
    """

    order: Sequence[GroupKey]
    wanted: Sequence[Wanted]
    each: int
    experts: int
    slots: Sequence[int]
    weight_slots: Sequence[int]
    window: int
    queue: int
    policy: Callable[[], EvictionPolicy] | None
    hints: float | None
    guesses: bool
    on_host: float
    passes: int
    seed: int


def random_mixture(seed: int) -> Mixture:
    random = Random(seed)
    layers, each = random.randint(1, 5), random.randint(1, 12)
    sparse = sorted(random.sample(range(layers), random.randint(1, layers)))
    total, passes = len(sparse) * each, random.randint(1, 4)
    pins = [(layer, random.randrange(each)) for layer in sparse]
    wanted: list[Wanted] = []
    for _ in range(passes):
        most = each if random.random() < 0.3 else max(1, each // 3)
        wanted += [
            (layer, sorted(random.sample(range(each), random.randint(1, most))), most == each and random.random() < 0.7)
            for layer in sparse
        ]
    places = random.choice([1, 2, 2])
    return Mixture(
        order=[(layer, part) for layer in range(layers) for part in ("attn", "ffn")],
        wanted=wanted,
        each=each,
        experts=total,
        slots=[random.choice([1, 2, random.randint(1, total + 1)]) for _ in range(places)],
        weight_slots=[random.randint(1, 4) for _ in range(places)],
        window=random.randint(1, 10),
        queue=random.randint(1, 5),
        policy=random.choice([LeastRecentlyUsed, LeastRecentlyUsed, LeastFrequentlyUsed, partial(Pinned, pins), None]),
        hints=random.choice([None, 0.0, 0.5, 1.0]),
        guesses=seed % 2 > 0,
        on_host=random.choice([0.0, 0.3, 1.0]) if places > 1 else 0.0,
        passes=passes,
        seed=seed,
    )


class MixtureProgram(Program):
    """Computes a mixture's layers; from a random moment on nobody needs the pass any more, if `leave` says so."""

    def __init__(self, mixture: Mixture, world: ExpertWorld, *, leave: float) -> None:
        self.order = mixture.order
        self._world = world
        self._random = Random(mixture.seed)
        self._leave = leave
        self._mixture = mixture
        self._at = 0
        self._kept = [kept_slots(count, mixture.experts, mixture.window) for count in mixture.slots]
        self._event: Event = READY

    async def begin(self) -> None:
        self._left = False

    def prepare(self, pass_: None, message: Message[Slot], /) -> Coroutine[Any, Any, None] | None:
        layer, *_ = self._mixture.wanted[self._at % len(self._mixture.wanted)]
        return self._experts(message) if message.key == (layer, "ffn") else None

    def step(self, pass_: None, message: Message[Slot], /) -> Sequence[Event]:
        if self._left:
            return ()
        self._event = self._launch((message,))
        return (self._event,)

    async def finish(self, pass_: None, /) -> None:
        await ended(self._event)
        await asyncio.sleep(MOST_SECONDS)  # uploads of what nobody needs any more end meanwhile
        held = [budget.statistics().held for budget in self._world.budgets]
        free_for_hints = 0 if self._mixture.hints is None else self._mixture.window - 1
        assert all(one <= most + free_for_hints for one, most in zip(held, self._kept, strict=True))

    async def _experts(self, message: Message[Slot]) -> None:
        if not self._left:
            await ended(self._launch((message,)))
        self._world.want(wanted := self._mixture.wanted[self._at], self._split if self._mixture.on_host else None)
        self._at += 1
        self._hint()
        left, events = len(wanted[1]), list[Event]()
        while left:
            given = await self._world.store.arrived()
            left -= len(given)
            self._left = self._left or self._random.random() < self._leave
            for some in by_place(given):
                events.append(READY if self._left else self._launch(some))
                self._world.store.used(some, events[-1])
        for event in events if self._mixture.on_host else ():
            await ended(event)

    def _split(self, kept: Sequence[int], read: Sequence[int]) -> set[int]:
        return {index for index in (*kept, *read) if self._random.random() < self._mixture.on_host}

    def _hint(self) -> None:
        if self._mixture.hints is not None and self._at < len(self._mixture.wanted):
            layer, experts, _ = self._mixture.wanted[self._at]
            right = [index for index in experts if self._random.random() < self._mixture.hints]
            tell = self._world.store.guess if self._mixture.guesses else self._world.store.hint
            tell(layer, right or [self._random.randrange(self._mixture.each)])

    def _launch(self, messages: Sequence[Message[Slot]]) -> Event:
        return self._world.device.compute(messages, self._random.uniform(0.001, MOST_SECONDS))


def mixture_world(mixture: Mixture) -> ExpertWorld:
    random = Random(mixture.seed)
    most = random.choice([0.01, MOST_SECONDS])
    return expert_world(
        mixture.slots,
        experts=mixture.experts,
        policy=mixture.policy,
        window=mixture.window,
        queue=mixture.queue,
        read_seconds=lambda: random.uniform(0.0, most),
        copy_seconds=random.choice([0.01, MOST_SECONDS]),
    )


def weights_line(mixture: Mixture, world: ExpertWorld, program: Program) -> Line:
    """The line of the weights beside that of the experts, on the same device."""
    clock, on_device = asyncio.get_running_loop().time, len(mixture.slots) > 1
    budgets = [
        Budget(name, {"expert": [Memory() for _ in range(count)]}, clock)
        for name, count in zip(("host", "device"), mixture.weight_slots, strict=False)
    ]
    return (
        Line(PrefetchPlanner(program.order, mixture.passes), catalog=Catalog(), clock=clock)  # type: ignore[arg-type]
        .then(DiskReader(Disk(world.disk.seconds), budgets[0]), queue=mixture.queue)
        .then(PinnedStager(), queue=mixture.queue)
        .then(GpuUploader(world.device, budgets[-1] if on_device else None, shares_lane=on_device), queue=mixture.queue)
        .then(ComputeScheduler(program), queue=mixture.queue)
    )


async def run(mixture: Mixture, world: ExpertWorld, *, leave: float = 0.0, stop_after: float | None = None) -> None:
    """Run both lines to the end, or for so many seconds; raises their failure. All slots are back in any case."""
    lines = (weights_line(mixture, world, MixtureProgram(mixture, world, leave=leave)), world.line)
    try:
        async with running(lines) as over:
            await asyncio.wait((over,), timeout=stop_after)
            failure = over.result() if over.done() else None
        if failure is not None:
            raise failure
    finally:
        world.store.fail()
    for line in lines:
        for budget in line.budgets:
            statistics = budget.statistics()
            assert statistics.held == 0
            assert statistics.peak <= statistics.capacity
    assert not world.device.faults


@pytest.mark.parametrize(
    "seeds",
    [*(range(begin, begin + BLOCK) for begin in range(0, SETTINGS, BLOCK)), TOLD_OF_ITSELF],
    ids=lambda seeds: str(seeds[0]),
)
def test_no_random_mixture_hangs_and_every_slot_is_back(seeds: Sequence[int]) -> None:
    async def main(mixture: Mixture) -> None:
        random, world = Random(mixture.seed), mixture_world(mixture)
        started = asyncio.get_running_loop().time()
        await run(mixture, world)
        seconds = asyncio.get_running_loop().time() - started
        like = {"experts": mixture.experts, "policy": mixture.policy, "window": mixture.window}
        counts = replayed(mixture.slots, mixture.wanted, **like, on_host=world.on_host)
        assert list(world.store.statistics().places.values()) == counts
        misses = sum(uses.misses + uses.streamed_misses for uses in counts[0].values())
        assert misses <= len(world.disk.reads) <= misses + world.store.statistics().hints.wasted
        await run(mixture, world, leave=random.choice([0.02, 0.3, 1.0]))
        await run(mixture, world, stop_after=random.uniform(0.0, seconds))
        layer, experts, _ = random.choice(mixture.wanted)
        world.disk.lost.add((layer, lost := part(random.choice(experts))))
        with pytest.raises(ActorFailed, match=f"^expert_reader failed at layer {layer} group '{lost}': OSError"):
            await run(mixture, world)
        await run(mixture, world)

    for seed in seeds:
        run_virtual(main(random_mixture(seed)))
