"""A whole line of production actors against simulated ports."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from actors.core.budget import Budget
from actors.core.line import Line, run_beside
from actors.core.ports import PrefetchPolicy, WeightSource
from actors.core.prefetch import PrefetchQueue
from actors.core.stage import Mover, Stage
from actors.core.trace import Trace
from pipeline.devices.port import ONE_PLACE, TWO_PLACES
from pipeline.devices.sim import SimDevice
from pipeline.engine.actor_names import ACTORS
from pipeline.engine.policies import POLICIES, fit_policy
from pipeline.engine.residency import NOTHING_STAYS, Residency
from pipeline.engine.wiring import Parts, Wired, slots_until_computed, wire
from pipeline.formats.parts import attends
from pipeline.groups.slot_kinds import SlotKinds
from pipeline.tools.simulation.loop import run_virtual
from pipeline.tools.simulation.timings import Order, Timings
from pipeline.tools.simulation.world import BYTES_PER_SECOND, SimCatalog, SimCompanion, SimDisk, SimProgram
from pipeline.tools.trace.overlap import Overlap


@dataclass(frozen=True, slots=True)
class SimLine:
    """A line that is ready to run; `budgets` are those of its places, in order."""

    wired: Wired
    program: SimProgram
    budgets: Sequence[Budget]
    policy: PrefetchPolicy
    queue: PrefetchQueue | None

    @property
    def line(self) -> Line:
        """The line of the weights."""
        return self.wired.line

    async def run(self) -> None:
        """Run it, and the KV line beside it."""
        await run_beside(self.wired.lines)


def sim_line(
    timings: Timings,
    *,
    policy: PrefetchPolicy = POLICIES["backpressure"],
    passes: int | None = 1,
    gpu_groups: int = 4,
    host_groups: int | None = None,
    queue: int | None = None,
    source: WeightSource | None = None,
    insert: Mapping[str, Sequence[Stage | Mover]] | None = None,
    trace: Trace | None = None,
    work: Callable[[int, str], float] | None = None,
    pass_tokens: int | None = None,
    residency: Residency = NOTHING_STAYS,
) -> SimLine:
    """Wire a line on simulated ports, as `pipeline.generation.build` does on real ones. Call it on the loop that
    will run it.

    Queues and host slots that are not given hold as many as there are `gpu_groups`. `source` and `work` stand in for
    the simulated disk and the computing of a group. What stays by `residency` has memory beside the slots.
    """
    clock = asyncio.get_running_loop().time
    places = ONE_PLACE if timings.one_link else TWO_PLACES
    host_groups = gpu_groups if host_groups is None or len(places) == 1 else host_groups
    kinds = SlotKinds.by_order(timings.order, min(gpu_groups, host_groups))
    device = SimDevice(places, h2d_bytes_per_second=BYTES_PER_SECOND)
    held = kinds.counts(gpu_groups)
    slots = slots_until_computed(held, insert or {})
    policy = fit_policy(policy, slots)
    trace = trace or Trace(recording=False)
    groups = {"gpu_groups": gpu_groups, "host_groups": host_groups}
    counts = {place.name: kinds.counts(groups[place.groups_setting]) for place in places}
    budgets = [
        Budget(name, _cells(counts[name], device), clock, dict.fromkeys(residency.stays(name))) for name in counts
    ]
    moves_kv = timings.kv_seconds > 0 and sum(attends(group) for _, group in timings.order) > 1
    companions = [SimCompanion(timings, device, ahead=getattr(policy, "kv_ahead", True)) for _ in range(moves_kv)]
    rendezvous = companions[0].rendezvous if companions else None
    program = SimProgram(device, timings, policy, work, pass_tokens, rendezvous)
    computed = program.computed if policy.triggered else None
    wired = wire(
        Parts(
            catalog=SimCatalog(timings, kinds, computed=computed),
            source=source or SimDisk(timings, computed=computed),
            device=device,
            program=program,
            policy=policy,
            budgets=budgets,
            slots=slots,
            queues=dict.fromkeys(ACTORS[1:], gpu_groups if queue is None else queue),
            insert=insert or {},
            clock=clock,
            trace=trace,
            passes=passes,
            companions=companions,
        )
    )
    return SimLine(wired, program, budgets, policy, wired.requests)


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulated run leaves behind: the policy as it was fitted, all spans and counts.

    `asked` is the most groups that a trigger asked for, by the kind of half that started, and `depth` how many layers
    ahead; empty and None without triggers.
    """

    policy: PrefetchPolicy
    order: Order
    trace: Trace
    asked: Mapping[str, int]
    depth: int | None
    passes: int

    def overlap(self) -> Overlap:
        """The run as a row of the policy table."""
        blocking = self.policy.waits == "blocking"
        return Overlap.of(
            self.policy.name, self.trace.spans, self.order, blocking=blocking, asked=self.asked, depth=self.depth
        )


def simulate(
    timings: Timings,
    policy: PrefetchPolicy,
    *,
    passes: int = 1,
    gpu_groups: int = 10,
    host_groups: int | None = None,
    queue: int | None = None,
    pass_tokens: int | None = None,
    residency: Residency = NOTHING_STAYS,
) -> Simulated:
    """Run so many passes on virtual time. Raises Deadlock when the line can never end.

    A pass of few `pass_tokens` is not cut into more micro-batches than that.
    """

    async def main() -> Simulated:
        trace = Trace(capacity=None)
        sim = sim_line(
            timings,
            policy=policy,
            passes=passes,
            gpu_groups=gpu_groups,
            host_groups=host_groups,
            queue=queue,
            trace=trace,
            pass_tokens=pass_tokens,
            residency=residency,
        )
        await sim.run()
        asked, depth = ({}, None) if sim.queue is None else (dict(sim.queue.asked_at), sim.queue.depth)
        return Simulated(sim.policy, timings.order, trace, asked, depth, passes)

    return run_virtual(main())


def _cells(slots: Mapping[str, int], device: SimDevice) -> dict[str, list[object]]:
    return {kind: [device.device_memory(0) for _ in range(count)] for kind, count in slots.items()}
