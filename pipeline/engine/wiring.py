"""Joins actors to lines, that of the weights and those of companions, for real and for simulated ports alike."""

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from actors.companion_planner import CompanionPlanner
from actors.companion_reader import CompanionReader
from actors.companion_swapper import CompanionSwapper
from actors.companion_uploader import CompanionUploader
from actors.compute_scheduler import ComputeScheduler
from actors.core.arrivals import Arrivals
from actors.core.budget import Budget
from actors.core.companion import SHARED, Companion
from actors.core.event import Clock
from actors.core.line import Line, LineStatistics, check_names, numbered
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
from pipeline.engine.actor_names import UPLOADER
from pipeline.engine.policies import find_policy, fit_policy
from pipeline.engine.settings import EngineSettings
from pipeline.groups.slot_kinds import SlotKinds, Slots

if TYPE_CHECKING:
    from pipeline.engine.expert_line import ExpertLine


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of lines, whatever they compute: a budget for each place of the device, in order.

    The `policy` fits the `slots`: by kind, how many groups can wait for their computation. Where there are several
    sections, actors and budgets bear the number of theirs.
    """

    settings: EngineSettings
    catalog: Catalog
    source: WeightSource
    device: Device
    policy: PrefetchPolicy
    slots: Mapping[str, int]
    budgets: Sequence[Budget]
    clock: Clock
    section: int | None = None

    @classmethod
    def of(
        cls,
        settings: EngineSettings,
        kinds: SlotKinds,
        catalog: Catalog,
        source: WeightSource,
        device: Device,
        slots: Mapping[str, Slots],
        residents: Mapping[str, Mapping[GroupKey, int]],
        clock: Clock,
        section: int | None = None,
    ) -> Self:
        """Take the memory of the slots, and of the groups that stay: their sizes by place. Raises ConfigError where
        the policy cannot be fitted."""
        counts = slots_until_computed(kinds.counts(settings.groups("gpu_groups")), settings.stages())
        policy = fit_policy(find_policy(settings.policy), counts)
        budgets = []
        for place in device.places:
            memory = device.host_memory if place is device.places[0] else device.device_memory
            cells = {kind: [memory(size) for _ in range(count)] for kind, (count, size) in slots[place.name].items()}
            stays = {group: memory(size) for group, size in residents[place.name].items()}
            budgets.append(Budget(numbered(place.name, section), cells, clock, stays))
        return cls(settings, catalog, source, device, policy, counts, budgets, clock, section)


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

    @property
    def bytes_uploaded(self) -> int:
        """The bytes of weights that were copied to the device."""
        return sum(actor.bytes_uploaded for actor in self.line.actors if isinstance(actor, GpuUploader))

    @property
    def asked(self) -> tuple[Mapping[str, int], int | None]:
        """The most groups that a trigger asked for by kind of half, and how many layers ahead; else empty and None."""
        return ({}, None) if self.requests is None else (dict(self.requests.asked_at), self.requests.depth)

    def statistics(self) -> LineStatistics:
        """The counters of all lines."""
        return functools.reduce(operator.or_, (line.statistics() for line in self.lines))


def slots_until_computed(slots: Mapping[str, int], insert: Mapping[str, Sequence[Stage | Mover]]) -> Mapping[str, int]:
    """By kind, how many groups can wait for their computation: a user's Mover behind the uploader may have fewer slots.

    What a triggered policy asks for must fit there, or a group that is not needed yet would keep out one that is.
    """
    for budget in _budgets_behind_the_uploader(insert):
        slots = {kind: min(count, budget.slots.get(kind, count)) for kind, count in slots.items()}
    return slots


def _budgets_behind_the_uploader(insert: Mapping[str, Sequence[Stage | Mover]]) -> list[Budget]:
    return [one.budget for one in insert.get(UPLOADER, ()) if isinstance(one, Mover) and one.budget is not None]


def wire(
    parts: Parts,
    program: Program,
    companions: Sequence[Companion] = (),
    trace: Trace | None = None,
    passes: int | None = None,
    experts: "ExpertLine | None" = None,
) -> Wired:
    """Join the actors. A policy with triggers gets a queue of requests, into which the later actors report."""
    policy, settings, clock, trace = parts.policy, parts.settings, parts.clock, trace or Trace(recording=False)
    from_disk, *behind = parts.budgets
    on_device = behind[-1] if behind else None
    requests = arrivals = None
    if policy.triggered:
        # A user's Mover behind the uploader has slots that groups share, those that stay too.
        residents = frozenset() if _budgets_behind_the_uploader(settings.stages()) else parts.budgets[-1].residents
        kinds = [None if key in residents else parts.catalog.kind(key) for key in program.order]
        links = 1 if on_device is None else 3
        requests = PrefetchQueue(program.order, kinds, parts.slots, policy, links=links, clock=clock)
        arrivals = Arrivals(policy, requests)
    scheduler = ComputeScheduler(program, blocking=policy.waits == "blocking", queue=requests)
    others = [*companions, *([experts] if experts else [])]
    uploader = GpuUploader(parts.device, on_device, arrivals, shares_lane=bool(others) and on_device is not None)
    planner = PrefetchPlanner(program.order, passes, requests)
    line = Line(planner, catalog=parts.catalog, clock=clock, trace=trace, number=parts.section)
    for actor in (DiskReader(parts.source, from_disk), PinnedStager(), uploader, scheduler):
        # A queue never limits the depth before the budget behind it does, unless the user sets it so.
        line.then(actor, queue=settings.queues.get(actor.name, settings.groups("gpu_groups")))
    for name, stages in settings.stages().items():
        line.insert(name, stages)
    lines = [line, *(_companion_line(one, parts, trace) for one in companions)]
    if experts is not None:
        lines.append(experts.line(trace))
    return Wired(lines, requests, arrivals)


def _companion_line(companion: Companion, parts: Parts, trace: Trace) -> Line:
    """A line with slots of its own, so that weights and companion bytes never wait for each other's slots.

    Its bytes go up through the same H2D lane as weights, by need: those of a layer as soon as there is a slot for them.
    """
    host = Budget(numbered(f"{companion.name} host", parts.section), companion.host_cells, parts.clock)
    on_device = None
    if companion.device_cells:
        name = numbered(f"{companion.name} device", parts.section)
        on_device = Budget(name, {SHARED: companion.device_cells}, parts.clock)
    # As many messages have a host slot: bytes that live in host memory never hold up the read of others from the disk.
    queue = sum(host.slots.values())
    return (
        Line(CompanionPlanner(companion), catalog=parts.catalog, clock=parts.clock, trace=trace, number=parts.section)
        .then(CompanionReader(companion, host), queue=queue)
        .then(CompanionUploader(companion, parts.device, on_device), queue=queue)
        .then(CompanionSwapper(companion, parts.device), queue=queue)
    )
