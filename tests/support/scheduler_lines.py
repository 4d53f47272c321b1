"""A line of a scripted planner, a mover and the compute scheduler, on two layers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from support.scripted_policy import ScriptedPolicy
from support.small_lines import layer_timings

from actors.compute_scheduler import ComputeScheduler
from actors.core.budget import Budget, Slot
from actors.core.event import Event
from actors.core.line import Line
from actors.core.message import READY, Message
from actors.core.prefetch import PrefetchQueue
from actors.core.stage import Mover, Source
from actors.core.trace import Span, Trace
from pipeline.devices.sim import SimDevice
from pipeline.groups.slot_kinds import SlotKinds
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.simulation.world import SimCatalog, SimProgram

A0, F0, A1, F1 = (0, "attn"), (0, "ffn"), (1, "attn"), (1, "ffn")
Item = tuple[int, str] | float | Exception


class Plan(Source):
    """Gives groups in the order that the test wants, with pauses of so many seconds in between, and then an error."""

    def __init__(self, *runs: Sequence[Item]) -> None:
        self.runs = list(runs)

    async def plan(self) -> AsyncIterator[Message[None]]:
        seq = 0
        for item in self.runs.pop(0):
            if isinstance(item, float):
                await asyncio.sleep(item)
            elif isinstance(item, Exception):
                raise item
            else:
                yield Message(*item, seq, None, READY)
                seq += 1


class Arrive(Mover):
    """Groups arrive one after the other, each in a slot, after `seconds`."""

    def __init__(self, device: SimDevice, budget: Budget, seconds: float) -> None:
        self.device = device
        self.budget = budget
        self.seconds = seconds

    async def move(self, message: Message[Any], slot: Slot) -> Event:
        return self.device.launch("link", lambda: self.seconds, (slot.after,))


@dataclass
class Reports(PrefetchQueue):
    """Stands where the prefetch queue does, and writes down what it is told, and when."""

    told: list[tuple[str, int, float]] = field(default_factory=list)

    def started(self, position: int) -> None:
        self.told.append(("started", position, asyncio.get_running_loop().time()))

    def ended(self, position: int) -> None:
        self.told.append(("ended", position, asyncio.get_running_loop().time()))


@dataclass
class World:
    line: Line
    program: SimProgram
    reports: Reports

    def steps(self) -> list[tuple[int, str]]:
        return [step for one in self.program.passes for step in one.steps]

    def computed(self) -> list[Span]:
        spans = [span for span in self.line.trace.spans if span.actor == "compute_scheduler" and span.what == "work"]
        return sorted(spans, key=lambda span: (span.started, span.ended))


def world(
    *runs: Sequence[Item],
    timings: LayerTimings | None = None,
    micro_batches: int = 1,
    program: type[SimProgram] = SimProgram,
    arrive_seconds: float = 0.01,
    slots: int = 8,
    **options: Any,
) -> World:
    """A planner, a mover and the scheduler, on the running loop."""
    timings = timings or layer_timings(layers=2)
    clock = asyncio.get_running_loop().time
    device, trace, reports = SimDevice(h2d_bytes_per_second=1.0), Trace(), Reports()
    runs_groups = program(device, timings, ScriptedPolicy(micro_batches=micro_batches))
    budget = Budget("device", {kind: [object() for _ in range(slots)] for kind in ("attn", "ffn")}, clock)
    line = (
        Line(Plan(*runs), catalog=SimCatalog(timings, SlotKinds.by_order(timings.order)), clock=clock, trace=trace)
        .then(Arrive(device, budget, arrive_seconds), queue=8)
        .then(ComputeScheduler(runs_groups, queue=reports, **options), queue=8)  # type: ignore[arg-type]
    )
    return World(line, runs_groups, reports)
