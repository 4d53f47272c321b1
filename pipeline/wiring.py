"""The five actors in a row, for real and for simulated ports alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.compute_scheduler import ComputeScheduler
from actors.core.arrivals import Arrivals
from actors.core.budget import Budget
from actors.core.line import Line
from actors.core.ports import Catalog, Clock, Device, PrefetchPolicy, Program, WeightSource
from actors.core.prefetch import PrefetchQueue
from actors.core.stage import Mover, Stage
from actors.core.trace import Trace
from actors.disk_reader import DiskReader
from actors.gpu_uploader import GpuUploader
from actors.pinned_stager import PinnedStager
from actors.prefetch_planner import PrefetchPlanner

ACTORS = ("prefetch_planner", "disk_reader", "pinned_stager", "gpu_uploader", "compute_scheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a line is made of. Without a `device_budget` host and device memory are one.

    The `policy` is one that fits the budgets; `queues` names every actor but the first.
    """

    catalog: Catalog
    source: WeightSource
    device: Device
    program: Program
    policy: PrefetchPolicy
    host_budget: Budget
    device_budget: Budget | None
    slots: Mapping[str, int]
    queues: Mapping[str, int]
    insert: Mapping[str, Sequence[Stage | Mover]]
    clock: Clock
    trace: Trace
    passes: int | None = None


@dataclass(frozen=True, slots=True)
class Wired:
    """A line that is ready to run, and what a triggered policy keeps beside it."""

    line: Line
    requests: PrefetchQueue | None
    arrivals: Arrivals | None


def slots_until_computed(slots: Mapping[str, int], insert: Mapping[str, Sequence[Stage | Mover]]) -> Mapping[str, int]:
    """By kind, how many groups can wait for their computation: a user's Mover behind the uploader may have fewer slots.

    What a triggered policy asks for must fit there, or a group that is not needed yet would keep out one that is.
    """
    for stage in insert.get("gpu_uploader", ()):
        budget = stage.budget if isinstance(stage, Mover) else None
        if budget is not None:
            slots = {kind: min(count, budget.slots.get(kind, count)) for kind, count in slots.items()}
    return slots


def wire(parts: Parts) -> Wired:
    """Join the actors. A policy with triggers gets a queue of requests, into which the later actors report."""
    order, policy = parts.program.order, parts.policy
    requests = arrivals = None
    if policy.triggered:
        kinds = [parts.catalog.kind(layer, group) for layer, group in order]
        links = 1 if parts.device_budget is None else 3
        requests = PrefetchQueue(order, kinds, parts.slots, policy, links=links, clock=parts.clock)
        arrivals = Arrivals(policy, requests)
    scheduler = ComputeScheduler(parts.program, blocking=policy.waits == "blocking", queue=requests)
    planner = PrefetchPlanner(order, parts.passes, requests)
    line = (
        Line(planner, catalog=parts.catalog, clock=parts.clock, trace=parts.trace)
        .then(DiskReader(parts.source, parts.host_budget), queue=parts.queues["disk_reader"])
        .then(PinnedStager(), queue=parts.queues["pinned_stager"])
        .then(GpuUploader(parts.device, parts.device_budget, arrivals), queue=parts.queues["gpu_uploader"])
        .then(scheduler, queue=parts.queues["compute_scheduler"])
    )
    for name, stages in parts.insert.items():
        line.insert(name, stages)
    return Wired(line, requests, arrivals)
