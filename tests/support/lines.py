"""A whole line of production actors on simulated ports, for tests and for measuring."""

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

MEGABYTE = 1_000_000


@dataclass
class SimLine:
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
    """Make a line whose every group is 1 MB; `slots` are per kind. Must be called on the loop that runs it."""
    clock = asyncio.get_running_loop().time
    kinds = {"attn": MEGABYTE, "ffn": MEGABYTE}
    order = [(layer, kind) for layer in range(layers) for kind in kinds]
    device = SimDevice(h2d_bytes_per_second=MEGABYTE / (transfer_ms / 1000), unified=unified)
    disk = source or SimDisk(kinds, MEGABYTE / (disk_ms / 1000) if disk_ms else float("inf"))
    seconds = work or (lambda layer, group: {"attn": attn_ms, "ffn": ffn_ms}[group] / 1000)
    program = SimProgram(device, len(order), seconds)
    host = Budget("host", {k: [device.host_memory(n) for _ in range(host_slots)] for k, n in kinds.items()}, clock)
    memory = None
    if not unified:
        cells = {k: [device.device_memory(n) for _ in range(slots)] for k, n in kinds.items()}
        memory = Budget("device", cells, clock)
    line = (
        Line(PrefetchPlanner(order, passes), catalog=SimCatalog(kinds), clock=clock, trace=trace)
        .then(DiskReader(disk, host), queue=queue)
        .then(PinnedStager(), queue=queue)
        .then(GpuUploader(device, memory), queue=queue)
        .then(ComputeScheduler(program), queue=queue)
    )
    for name, stages in (insert or {}).items():
        line.insert(name, stages, queue=queue)
    return SimLine(line, program, host, memory)
