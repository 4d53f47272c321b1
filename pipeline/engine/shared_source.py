"""Where the groups of all lines come from that compute one model: one source, so that they share the disk fairly."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.devices.port import Device
from pipeline.engine.expert_room import ExpertRoom
from pipeline.engine.plan import Plan
from pipeline.engine.settings import EngineSettings
from pipeline.groups.catalog import WeightCatalog
from pipeline.groups.groups import WeightGroup
from pipeline.reading.checksums import Checking, Checksums, choose_checking
from pipeline.reading.reading_choice import ReadingChoice
from pipeline.reading.source import CheckpointSource

logger = logging.getLogger("penstock")


@dataclass(frozen=True, slots=True)
class PlannedLine:
    """What one line moves and computes with, and where that is to lie; nothing is taken yet."""

    groups: Sequence[WeightGroup]
    catalog: WeightCatalog
    device: Device
    plan: Plan
    experts: ExpertRoom | None = None

    @property
    def moving_bytes(self) -> int:
        """The bytes of weight groups that come from the disk in every pass."""
        stays = self.plan.residency.arrived(self.device.places[0].name)
        return sum(one.needed_bytes for key, one in self.catalog.host.items() if key not in stays)

    @property
    def most_read_bytes(self) -> int:
        """The most that a pass reads: those, and all experts that have no slot."""
        if self.experts is None:
            return self.moving_bytes
        missed = self.experts.missed_bytes(self.plan.experts, self.experts.count)
        return self.moving_bytes + missed[self.device.places[0].name]


@dataclass(frozen=True, slots=True)
class SharedSource:
    """The checkpoint, the source that reads it as was chosen, and whether it compares what it reads."""

    checkpoint: Checkpoint
    reading: ReadingChoice
    checking: Checking
    source: CheckpointSource

    @classmethod
    def of(
        cls, settings: EngineSettings, checkpoint: Checkpoint, reading: ReadingChoice, lines: Sequence[PlannedLine]
    ) -> Self:
        """Open the files for these lines, and begin the threads that read; first come, first served."""
        logger.info("reads %s", reading)
        shares_cores = any(line.device.shares_cores for line in lines)
        most = sum(line.most_read_bytes for line in lines)
        checking = choose_checking(settings.checksums, shares_cores, most, reading.bytes_per_second)
        logger.info("checksums %s", checking)
        groups = [group for line in lines for group in line.groups]
        layouts = {key: layout for line in lines for key, layout in line.catalog.host.items()}
        for experts in [line.experts.catalog for line in lines if line.experts is not None]:
            groups += experts.groups
            layouts |= experts.host
        checksums = Checksums(groups, reading.chosen.lanes, checkpoint.folder) if checking.on else None
        source = CheckpointSource(layouts, checkpoint.files, reading.chosen, checksums)
        return cls(checkpoint, reading, checking, source)

    async def aclose(self) -> None:
        """Wait for the reads in flight, and close the files. Closing twice is harmless."""
        try:
            await self.source.aclose()
        finally:
            self.checkpoint.close()
