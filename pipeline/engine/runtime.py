"""What an open line owns, whatever it computes: its groups, their source, the memory of their slots, its actors."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.core.companion import Companion
from actors.core.crew import Over
from actors.core.line import Line, run_beside, running
from actors.core.ports import Program
from actors.core.trace import Trace
from pipeline.devices.spinning import warn_of_spinning
from pipeline.engine.expert_line import ExpertLine
from pipeline.engine.settings import EngineSettings
from pipeline.engine.shared_source import PlannedLine, SharedSource
from pipeline.engine.statistics import ChecksumsRecord, EngineStatistics
from pipeline.engine.wiring import Parts, Wired, wire

CLOCK = time.perf_counter
logger = logging.getLogger("penstock")


class Runtime:
    """Everything that an open line owns. A program needs some of it, so it comes later, with `wire`.

    Lines that compute one model have one `shared` source, and each the number of its `section`.
    """

    wired: Wired

    def __init__(
        self, settings: EngineSettings, planned: PlannedLine, shared: SharedSource, section: int | None = None
    ) -> None:
        """The settings are those of one device."""
        plan, catalog, device, experts = planned.plan, planned.catalog, planned.device, planned.experts
        self.settings = settings = replace(settings.of_device(settings.device), gpu_groups=plan.groups)
        self.number = section
        self.shared = shared
        self.checkpoint = shared.checkpoint
        self.folder = shared.checkpoint.folder
        self.reading, self.checking = shared.reading, shared.checking
        self.source = shared.source
        self.catalog = catalog
        self.device = device
        self.plan = plan.memory
        self.residency = plan.residency
        self.moving_bytes = planned.moving_bytes
        sizes = {place: catalog.group_bytes(place) for place in plan.slots}
        residents = {place: {key: sizes[place][key] for key in self.residency.stays(place)} for place in sizes}
        parts = (settings, catalog.slot_kinds, catalog, self.source, device, plan.slots, residents, CLOCK, section)
        self._parts = Parts.of(*parts)
        self.policy = self._parts.policy
        slots = plan.experts
        self.expert_line = None if experts is None else ExpertLine.of(experts, slots, self.source, CLOCK, section)

    def wire(
        self,
        program: Program,
        companions: Sequence[Companion] = (),
        trace: Trace | None = None,
        passes: int | None = None,
    ) -> None:
        """Join the actors for a program; its passes have no end where `passes` does not say how many. Nothing runs."""
        self.wired = wire(self._parts, program, companions, trace, passes, self.expert_line)
        if self.device.shares_cores and not self._parts.section:
            warn_of_spinning()
        logger.info("%d of %d weight groups move in each pass", self.moving_groups, len(self.catalog.order))

    @property
    def line(self) -> Line:
        """The five actors, and the user's own between them."""
        return self.wired.line

    @property
    def lines(self) -> Sequence[Line]:
        """That of the weights, and those beside it."""
        return self.wired.lines

    @property
    def trace(self) -> Trace:
        """What all lines record into."""
        return self.line.trace

    @property
    def bytes_read(self) -> int:
        """Bytes of its groups, experts too, that have arrived from the disk, padding included."""
        experts = {} if self.expert_line is None else self.expert_line.room.catalog.host
        return self.source.bytes_of(self.catalog.host.keys() | experts.keys())

    @property
    def place_slots(self) -> Mapping[str, Mapping[str, int]]:
        """How many groups of each kind have a slot in each place of the device, beside those that stay."""
        places = (place.name for place in self.device.places)
        return {place: budget.slots for place, budget in zip(places, self._parts.budgets, strict=True)}

    @property
    def slots(self) -> int:
        """How many groups have a slot in the line of the weights, beside those that stay."""
        return sum(sum(budget.slots.values()) for budget in self.line.budgets)

    @property
    def own_actors(self) -> list[str]:
        """The names of the user's own actors."""
        return [stage.name for stages in self.settings.stages().values() for stage in stages]

    @property
    def moving_groups(self) -> int:
        """How many weight groups move in every pass, all but those that stay where they are computed, and how many
        experts have no slot there.
        """
        experts = 0
        if self.expert_line is not None:
            experts = max(0, self.expert_line.room.count - sum(self.expert_line.budgets[-1].slots.values()))
        return len(self.catalog.order) - len(self.residency.stays(self.device.places[-1].name)) + experts

    def describe(self) -> dict[str, Any]:
        """The settings as they took effect, as plain data: what a trace file and a report say."""
        return {
            "device": str(self.device.torch_device),
            "policy": self.policy.name,
            "micro_batches": self.policy.micro_batches,
            "gpu_groups": self.settings.gpu_groups,
            "host_groups": self.settings.host_groups,
            "queues": {name: channel.capacity for name, channel in self.line.statistics().channels.items()},
            "checksums": str(self.checking),
            "reading": str(self.reading.chosen),
            "groups_per_pass": len(self.catalog.order),
            "moving_groups": self.moving_groups,
            "actors": [actor.name for line in self.wired.lines for actor in line.actors],
        }

    def statistics(self) -> EngineStatistics:
        """Read all counters now."""
        return EngineStatistics(**engine_counters([self]))

    def running(self) -> contextlib.AbstractAsyncContextManager[Over]:
        """Run the line of the weights, and those beside it."""
        return running(self.wired.lines)

    async def run(self) -> None:
        """Run until all passes are through. Raises the first failure as ActorFailed."""
        await run_beside(self.wired.lines)

    async def aclose(self) -> None:
        """Give everything back; the lines must have stopped."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.shared.aclose)
            stack.push_async_callback(self.device.aclose)

    def counters(self) -> dict[str, Any]:
        """What is counted of its lines alone."""
        line, arrivals, places = self.wired.statistics(), self.wired.arrivals, self.device.places
        budgets = {place.name: budget.statistics() for place, budget in zip(places, self._parts.budgets, strict=True)}
        return {
            "bytes_uploaded": self.wired.bytes_uploaded,
            "device_groups_peak": budgets[places[-1].name].peak,
            "host_groups_peak": budgets[places[0].name].peak,
            "groups_reloaded": 0 if arrivals is None else arrivals.reloaded,
            "resident_groups": {place: budget.residents for place, budget in reversed(budgets.items())},
            "moving_groups": self.moving_groups,
            "busy_seconds": {name: actor.busy_seconds for name, actor in line.actors.items()},
            "stalled_seconds": {name: actor.stalled_seconds for name, actor in line.actors.items()},
            "channels": line.channels,
            "budgets": line.budgets,
        }


def engine_counters(lines: Sequence[Runtime]) -> dict[str, Any]:
    """What is counted of lines that compute one model: numbers are those of all together, by place and by actor."""
    first, sums = lines[0], lines[0].source.checksums
    summed = (0, 0, 0, 0) if sums is None else (sums.groups, sums.rows, sums.nbytes, sums.mismatches)
    return {
        "policy": first.policy.name,
        "reading": str(first.reading),
        "bytes_read": first.source.bytes_read,
        "bytes_needed": first.source.bytes_needed,
        "checksums": ChecksumsRecord(str(first.checking), *summed),
        **added_up([line.counters() for line in lines]),
    }


def added_up(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counters of several lines: numbers are added up, and what has a name in one of them alone stays."""
    added: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in each for name in one):
        found = [one[name] for one in each if name in one]
        several = len(found) > 1
        added[name] = found[0] if not several else added_up(found) if isinstance(found[0], Mapping) else sum(found)
    return added
