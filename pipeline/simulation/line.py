"""A whole line of production actors against simulated ports."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from actors.compute_scheduler import ComputeScheduler
from actors.core.budget import Budget
from actors.core.line import Line
from actors.core.ports import WeightSource
from actors.core.stage import Mover, Stage
from actors.core.trace import Trace
from actors.disk_reader import DiskReader
from actors.gpu_uploader import GpuUploader
from actors.pinned_stager import PinnedStager
from actors.prefetch_planner import PrefetchPlanner
from pipeline.devices.sim import SimDevice
from pipeline.simulation.world import SimCatalog, SimDisk, SimProgram

GROUP_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class SimLine:
    """A line that is ready to run; `device` is None where host and device memory are one."""

    line: Line
    program: SimProgram
    host: Budget
    device: Budget | None


def sim_line(
    *,
    layers: int = 4,
    passes: int | None = 2,
    transfer_ms: float = 100.0,
    disk_ms: float = 0.0,
    attn_ms: float = 80.0,
    ffn_ms: float = 120.0,
    slots: int = 2,
    host_slots: int = 2,
    queue: int = 1,
    unified: bool = False,
    source: WeightSource | None = None,
    insert: Mapping[str, Sequence[Stage | Mover]] | None = None,
    trace: Trace | None = None,
    work: Callable[[int, str], float] | None = None,
) -> SimLine:
    """Wire a line in which reading, moving and computing a group take so many milliseconds; 0 takes no time.

    `slots` and `host_slots` are per kind of group. Must be called on the loop that will run the line.
    """
    clock = asyncio.get_running_loop().time
    kinds = {"attn": GROUP_BYTES, "ffn": GROUP_BYTES}
    order = [(layer, kind) for layer in range(layers) for kind in kinds]
    device = SimDevice(h2d_bytes_per_second=_rate(transfer_ms), unified=unified)
    seconds = work or (lambda layer, group: {"attn": attn_ms, "ffn": ffn_ms}[group] / 1000)
    program = SimProgram(device, len(order), seconds)
    host = Budget("host", {k: [device.host_memory(n) for _ in range(host_slots)] for k, n in kinds.items()}, clock)
    memory = None
    if not unified:
        cells = {k: [device.device_memory(n) for _ in range(slots)] for k, n in kinds.items()}
        memory = Budget("device", cells, clock)
    line = (
        Line(PrefetchPlanner(order, passes), catalog=SimCatalog(kinds), clock=clock, trace=trace)
        .then(DiskReader(source or SimDisk(kinds, _rate(disk_ms)), host), queue=queue)
        .then(PinnedStager(), queue=queue)
        .then(GpuUploader(device, memory), queue=queue)
        .then(ComputeScheduler(program), queue=queue)
    )
    for name, stages in (insert or {}).items():
        line.insert(name, stages, queue=queue)
    return SimLine(line, program, host, memory)


def _rate(milliseconds: float) -> float:
    return GROUP_BYTES / (milliseconds / 1000) if milliseconds else float("inf")
