"""The five actors in a row, for real and for simulated ports alike."""

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.companion_planner import CompanionPlanner
from actors.companion_reader import CompanionReader
from actors.companion_swapper import CompanionSwapper
from actors.companion_uploader import CompanionUploader
from actors.compute_scheduler import ComputeScheduler
from actors.core.arrivals import Arrivals
from actors.core.budget import Budget
from actors.core.companion import SHARED, Companion
from actors.core.event import Clock
from actors.core.line import Line, LineStatistics, check_names
from actors.core.message import GroupKey
from actors.core.ports import Catalog, PrefetchPolicy, Program, WeightSource
from actors.core.prefetch import PrefetchQueue
from actors.core.stage import Mover, Stage
from actors.core.trace import Trace
from actors.disk_reader import DiskReader
from actors.gpu_uploader import GpuUploader
from actors.pinned_stager import PinnedStager
from actors.prefetch_planner import PrefetchPlanner
from pipeline.devices.port import Device
from pipeline.engine.actor_names import READER, SCHEDULER, STAGER, UPLOADER


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a line is made of; `budgets` are those of the device's places, in order.

    The `policy` is one that fits the budgets; `queues` names every actor but the first.
    """

    catalog: Catalog
    source: WeightSource
    device: Device
    program: Program
    policy: PrefetchPolicy
    budgets: Sequence[Budget]
    slots: Mapping[str, int]
    queues: Mapping[str, int]
    insert: Mapping[str, Sequence[Stage | Mover]]
    clock: Clock
    trace: Trace
    passes: int | None = None
    companions: Sequence[Companion] = ()


@dataclass(frozen=True, slots=True)
class Wired:
    """All lines that must run, that of the weights first, and what a triggered policy keeps beside it.

    Raises LineError where two actors or two budgets have the same name.
    """

    lines: Sequence[Line]
    requests: PrefetchQueue | None
    arrivals: Arrivals | None

    def __post_init__(self) -> None:
        check_names(self.lines)

    @property
    def line(self) -> Line:
        """The line of the weights."""
        return self.lines[0]

    def statistics(self) -> LineStatistics:
        """The counters of all lines."""
        return functools.reduce(operator.or_, (line.statistics() for line in self.lines))


def slots_until_computed(slots: Mapping[str, int], insert: Mapping[str, Sequence[Stage | Mover]]) -> Mapping[str, int]:
    """By kind, how many groups can wait for their computation: a user's Mover behind the uploader may have fewer slots.

    What a triggered policy asks for must fit there, or a group that is not needed yet would keep out one that is.
    """
    for stage in insert.get(UPLOADER, ()):
        budget = stage.budget if isinstance(stage, Mover) else None
        if budget is not None:
            slots = {kind: min(count, budget.slots.get(kind, count)) for kind, count in slots.items()}
    return slots


def wire(parts: Parts) -> Wired:
    """Join the actors. A policy with triggers gets a queue of requests, into which the later actors report."""
    order, policy = parts.program.order, parts.policy
    from_disk, *behind = parts.budgets
    on_device = behind[-1] if behind else None
    requests = arrivals = None
    if policy.triggered:
        residents = _resident_until_computed(parts)
        kinds = [None if key in residents else parts.catalog.kind(*key) for key in order]
        links = 1 if on_device is None else 3
        requests = PrefetchQueue(order, kinds, parts.slots, policy, links=links, clock=parts.clock)
        arrivals = Arrivals(policy, requests)
    scheduler = ComputeScheduler(parts.program, blocking=policy.waits == "blocking", queue=requests)
    shares_lane = bool(parts.companions) and on_device is not None
    uploader = GpuUploader(parts.device, on_device, arrivals, shares_lane=shares_lane)
    planner = PrefetchPlanner(order, parts.passes, requests)
    line = (
        Line(planner, catalog=parts.catalog, clock=parts.clock, trace=parts.trace)
        .then(DiskReader(parts.source, from_disk), queue=parts.queues[READER])
        .then(PinnedStager(), queue=parts.queues[STAGER])
        .then(uploader, queue=parts.queues[UPLOADER])
        .then(scheduler, queue=parts.queues[SCHEDULER])
    )
    for name, stages in parts.insert.items():
        line.insert(name, stages)
    return Wired((line, *(_companion_line(companion, parts) for companion in parts.companions)), requests, arrivals)


def _resident_until_computed(parts: Parts) -> frozenset[GroupKey]:
    """The groups with slots of their own all the way: a user's Mover behind the uploader has shared ones."""
    if any(isinstance(stage, Mover) and stage.budget is not None for stage in parts.insert.get(UPLOADER, ())):
        return frozenset()
    return parts.budgets[-1].residents


def _companion_line(companion: Companion, parts: Parts) -> Line:
    """A line with slots of its own, so that weights and companion bytes never wait for each other's slots.

    Its bytes go up through the same H2D lane as weights, by need: those of a layer as soon as there is a slot for them.
    """
    host = Budget(f"{companion.name} host", companion.host_cells, parts.clock)
    on_device = None
    if companion.device_cells:
        on_device = Budget(f"{companion.name} device", {SHARED: companion.device_cells}, parts.clock)
    # As many messages have a host slot: bytes that live in host memory never hold up the read of others from the disk.
    queue = sum(host.slots.values())
    return (
        Line(CompanionPlanner(companion), catalog=parts.catalog, clock=parts.clock, trace=parts.trace)
        .then(CompanionReader(companion, host), queue=queue)
        .then(CompanionUploader(companion, parts.device, on_device), queue=queue)
        .then(CompanionSwapper(companion, parts.device), queue=queue)
    )
