"""Lines of production actors, one for each section of a model, against simulated ports."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.core.line import running
from actors.core.message import GroupKey
from actors.core.trace import Trace
from pipeline.engine.policies import POLICIES
from pipeline.engine.residency import NOTHING_STAYS, Residency
from pipeline.tools.simulation.loop import run_virtual
from pipeline.tools.simulation.sim_line import SimLine, sim_line
from pipeline.tools.simulation.sim_passes import SectionRates, SectionTimings, SimPasses, SimSection
from pipeline.tools.simulation.timings import Timings
from pipeline.tools.simulation.world import SimDisk


@dataclass(frozen=True, slots=True)
class SimulatedSections:
    """When each pass began and ended, in virtual seconds, and what each section did."""

    began: Sequence[float]
    ended: Sequence[float]
    in_flight: int
    traces: Sequence[Trace]

    @property
    def pass_seconds(self) -> float:
        """The seconds from the end of a pass to that of the next, without the first, which begin with empty slots."""
        count = max(2, self.in_flight)
        return (self.ended[-1] - self.ended[-1 - count]) / count

    @property
    def token_seconds(self) -> float:
        """The seconds between two tokens of a request, which is part of one pass in `in_flight`."""
        return self.pass_seconds * self.in_flight


def sim_sections(
    timings: Timings,
    owners: Sequence[int],
    *,
    rates: Sequence[SectionRates] | None = None,
    hop_seconds: float = 0.0,
    shared_disk: bool = False,
    in_flight: int = 1,
    micro_batches: int = 1,
    residency: Residency = NOTHING_STAYS,
    gpu_groups: int = 4,
    host_groups: int | None = None,
    queue: int | None = None,
    recording: bool = True,
) -> tuple[SimPasses, list[SimLine]]:
    """Wire a line for each section, on the loop that will run them; `owners` has the section of each layer, and of
    what follows the layers. The lines are endless.

    A shared disk serves the reads of all sections, first come first served; else each has one of its own. Slots,
    queues and rates are those of each section.
    """
    owner: Mapping[GroupKey, int] = {key: owners[key[0]] for key in timings.order}
    sections = range(max(owner.values()) + 1)
    rates = rates or [SectionRates()] * len(sections)
    whole = SimPasses(timings.order, owner, hop_seconds=hop_seconds, in_flight=in_flight)
    disk = SimDisk(timings) if shared_disk else None
    lines = []
    for section in sections:
        order = tuple(key for key in timings.order if owner[key] == section)
        stays = {place: tuple(key for key in groups if key in order) for place, groups in residency.by_place.items()}
        lines.append(
            sim_line(
                SectionTimings(timings, order, rates[section]),
                policy=replace(POLICIES["backpressure"], micro_batches=micro_batches),
                passes=None,
                gpu_groups=gpu_groups,
                host_groups=host_groups,
                queue=queue,
                source=disk,
                trace=Trace(capacity=None, recording=recording),
                residency=Residency(stays),
                program=functools.partial(SimSection, whole, section),
            )
        )
    return whole, lines


async def run_sections(whole: SimPasses, lines: Sequence[SimLine], passes: int) -> None:
    """Run all lines until so many passes have ended. Raises the first failure, which ends all."""
    async with running([line for section in lines for line in section.wired.lines]) as over:
        whole.let_end(over, passes)
        failure = await over
    if failure is not None:
        raise failure from failure.__cause__


def simulate_sections(
    timings: Timings, owners: Sequence[int], *, passes: int | None = None, in_flight: int = 1, **line: Any
) -> SimulatedSections:
    """Run passes on virtual time, or else as many as `pass_seconds` needs; `line` as `sim_sections` takes it.

    Raises Deadlock when a line can never go on.
    """

    async def main() -> SimulatedSections:
        whole, lines = sim_sections(timings, owners, in_flight=in_flight, **line)
        await run_sections(whole, lines, passes or 2 + 2 * in_flight)
        traces = [section.line.trace for section in lines]
        return SimulatedSections(whole.began, whole.ended, in_flight, traces)

    return run_virtual(main())
