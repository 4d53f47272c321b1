"""An open line owns, whatever it computes, its groups, how they are read, where they go, and the wired actors."""

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actors.core.companion import Companion
from actors.core.crew import Over
from actors.core.line import Line, run_beside, running
from actors.core.ports import Program
from actors.core.trace import Trace
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.devices.port import Device
from pipeline.devices.spinning import warn_of_spinning
from pipeline.engine.expert_line import ExpertLine
from pipeline.engine.expert_room import ExpertRoom
from pipeline.engine.plan import Plan
from pipeline.engine.settings import EngineSettings
from pipeline.engine.statistics import ChecksumsRecord, EngineStatistics
from pipeline.engine.wiring import Parts, Wired, wire
from pipeline.groups.catalog import WeightCatalog
from pipeline.groups.groups import WeightGroup
from pipeline.reading.checksums import Checksums, choose_checking
from pipeline.reading.reading_choice import ReadingChoice
from pipeline.reading.source import CheckpointSource

CLOCK = time.perf_counter
logger = logging.getLogger("penstock")


class Runtime:
    """Everything that an open line owns. A program needs some of it, so it comes later, with `wire`."""

    wired: Wired

    def __init__(
        self,
        settings: EngineSettings,
        checkpoint: Checkpoint,
        groups: Sequence[WeightGroup],
        catalog: WeightCatalog,
        device: Device,
        plan: Plan,
        reading: ReadingChoice,
        experts: ExpertRoom | None = None,
    ) -> None:
        self.settings = settings = replace(settings.of_device(settings.device), gpu_groups=plan.groups)
        self.checkpoint = checkpoint
        self.folder = checkpoint.folder
        self.catalog = catalog
        self.device = device
        self.plan = plan.memory
        self.residency = plan.residency
        self.reading = reading
        logger.info("reads %s", self.reading)
        stays = self.residency.arrived(device.places[0].name)
        self.moving_bytes = sum(one.needed_bytes for key, one in catalog.host.items() if key not in stays)
        rate, most = self.reading.bytes_per_second, self.moving_bytes
        if experts is not None:
            most += experts.missed_bytes(plan.experts, experts.count)[device.places[0].name]
        self.checking = choose_checking(settings.checksums, device.shares_cores, most, rate)
        logger.info("checksums %s", self.checking)
        lanes = self.reading.chosen.lanes
        layouts = catalog.host
        if experts is not None:
            groups, layouts = (*groups, *experts.catalog.groups), {**layouts, **experts.catalog.host}
        checksums = Checksums(groups, lanes, checkpoint.folder) if self.checking.on else None
        self.source = CheckpointSource(layouts, checkpoint.files, self.reading.chosen, checksums)
        sizes = {place: catalog.group_bytes(place) for place in plan.slots}
        residents = {place: {key: sizes[place][key] for key in self.residency.stays(place)} for place in sizes}
        self._parts = Parts.of(settings, catalog.slot_kinds, catalog, self.source, device, plan.slots, residents, CLOCK)
        self.policy = self._parts.policy
        self.expert_line = None if experts is None else ExpertLine.of(experts, plan.experts, self.source, CLOCK)

    def wire(
        self,
        program: Program,
        companions: Sequence[Companion] = (),
        trace: Trace | None = None,
        passes: int | None = None,
    ) -> None:
        """Join the actors for a program; its passes have no end where `passes` does not say how many. Nothing runs."""
        self.wired = wire(self._parts, program, companions, trace, passes, self.expert_line)
        if self.device.shares_cores:
            warn_of_spinning()
        logger.info("%d of %d weight groups move in each pass", self.moving_groups, len(self.catalog.order))

    @property
    def line(self) -> Line:
        """The five actors, and the user's own between them."""
        return self.wired.line

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
        return EngineStatistics(**self._counters())

    def running(self) -> contextlib.AbstractAsyncContextManager[Over]:
        """Run the line of the weights, and those beside it."""
        return running(self.wired.lines)

    async def run(self) -> None:
        """Run until all passes are through. Raises the first failure as ActorFailed."""
        await run_beside(self.wired.lines)

    async def aclose(self) -> None:
        """Give everything back; the lines must have stopped."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.checkpoint.close)
            stack.push_async_callback(self.source.aclose)
            stack.push_async_callback(self.device.aclose)

    def _counters(self) -> dict[str, Any]:
        line, arrivals, sums = self.wired.statistics(), self.wired.arrivals, self.source.checksums
        places = [place.name for place in self.device.places]
        summed = (0, 0, 0, 0) if sums is None else (sums.groups, sums.rows, sums.nbytes, sums.mismatches)
        return {
            "policy": self.policy.name,
            "reading": str(self.reading),
            "bytes_read": self.source.bytes_read,
            "bytes_needed": self.source.bytes_needed,
            "bytes_uploaded": self.wired.bytes_uploaded,
            "checksums": ChecksumsRecord(str(self.checking), *summed),
            "device_groups_peak": line.budgets[places[-1]].peak,
            "host_groups_peak": line.budgets[places[0]].peak,
            "groups_reloaded": 0 if arrivals is None else arrivals.reloaded,
            "resident_groups": {place: line.budgets[place].residents for place in reversed(places)},
            "moving_groups": self.moving_groups,
            "busy_seconds": {name: actor.busy_seconds for name, actor in line.actors.items()},
            "stalled_seconds": {name: actor.stalled_seconds for name, actor in line.actors.items()},
            "channels": line.channels,
            "budgets": line.budgets,
        }
