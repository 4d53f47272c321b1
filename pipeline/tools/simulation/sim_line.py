"""A whole line of production actors against simulated ports."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from actors.core.line import Line, run_beside
from actors.core.message import GroupKey
from actors.core.ports import PrefetchPolicy, WeightSource
from actors.core.stage import Mover, Stage
from actors.core.trace import Trace
from pipeline.devices.port import ONE_PLACE, TWO_PLACES
from pipeline.devices.sim import SimDevice
from pipeline.engine.actor_names import ACTORS
from pipeline.engine.policies import POLICIES
from pipeline.engine.residency import NOTHING_STAYS, Residency
from pipeline.engine.settings import EngineSettings
from pipeline.engine.wiring import Parts, Wired, wire
from pipeline.formats.parts import attends
from pipeline.groups.slot_kinds import SlotKinds
from pipeline.tools.simulation.loop import run_virtual
from pipeline.tools.simulation.timings import Order, Timings
from pipeline.tools.simulation.world import BYTES_PER_SECOND, Computed, SimCatalog, SimCompanion, SimDisk, SimProgram
from pipeline.tools.trace.overlap import Overlap


@dataclass(frozen=True, slots=True)
class SimLine:
    """A line that is ready to run."""

    wired: Wired
    program: SimProgram
    parts: Parts

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
    work: Callable[[GroupKey], float] | None = None,
    pass_tokens: int | None = None,
    residency: Residency = NOTHING_STAYS,
    program: Callable[..., SimProgram] = SimProgram,
) -> SimLine:
    """Wire a line on simulated ports, as `pipeline.engine.runtime` does on real ones, on the loop that will run it.

    Queues and host slots that are not given hold as many as there are `gpu_groups`. `source` and `work` stand in for
    the simulated disk and the computing of a group, `program` for the class of the program. What stays by `residency`
    has memory beside the slots.
    """
    places = ONE_PLACE if timings.one_link else TWO_PLACES
    settings = EngineSettings(
        policy=policy,
        gpu_groups=gpu_groups,
        host_groups=host_groups or gpu_groups,
        queues={} if queue is None else dict.fromkeys(ACTORS[1:], queue),
        insert=insert or {},
    )
    groups = {place.name: getattr(settings, place.groups_setting) for place in places}
    kinds = SlotKinds.by_order(timings.order, min(groups.values()))
    device = SimDevice(places, h2d_bytes_per_second=BYTES_PER_SECOND)
    computed: Computed = Counter()
    moves_once = computed if policy.triggered else None
    parts = Parts.of(
        settings,
        kinds,
        SimCatalog(timings, kinds, computed=moves_once),
        source or SimDisk(timings, computed=moves_once),
        device,
        {place: {kind: (count, 0) for kind, count in kinds.counts(slots).items()} for place, slots in groups.items()},
        {place: dict.fromkeys(residency.stays(place), 0) for place in groups},
        asyncio.get_running_loop().time,
    )
    moves_kv = timings.kv_seconds > 0 and sum(attends(group) for _, group in timings.order) > 1
    companions = [SimCompanion(timings, device, ahead=parts.policy.kv_ahead) for _ in range(moves_kv)]
    rendezvous = companions[0].rendezvous if companions else None
    runs = program(device, timings, parts.policy, work, pass_tokens, rendezvous, computed)
    return SimLine(wire(parts, runs, companions, trace, passes), runs, parts)


@dataclass(frozen=True, slots=True)
class Simulated:
    """The outcome of a simulated run: the policy as it was fitted, all spans and counts; the rest as `Wired.asked`."""

    policy: PrefetchPolicy
    order: Order
    trace: Trace
    asked: Mapping[str, int]
    depth: int | None

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
    """Run passes on virtual time, in at most `pass_tokens` parts each. Raises Deadlock when a line can never end."""

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
        return Simulated(sim.parts.policy, timings.order, trace, *sim.wired.asked)

    return run_virtual(main())
