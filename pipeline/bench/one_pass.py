"""`penstock bench pass`: how close one pass comes to the slowest of its floors."""

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.core.trace import Trace
from pipeline.api import Model
from pipeline.bench.floors import Floors, Loaded
from pipeline.build import build
from pipeline.config import Config
from pipeline.trace.configuration import describe
from pipeline.trace.recording import Recording

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PassReport:
    """Medians over `passes` rounds, in each of which the floors and the pass were measured one after the other.

    `ratio` is the median of `pass / max(floors)` taken round by round, so that a drift of the machine cancels;
    `recording_ratio` the same of a pass that was recorded to one that was not.
    `first_group_wait_seconds` is how long the device waited for a pass's first group, `group_wait_seconds` the mean
    wait over all groups: they are alike when the line never drains between passes (rule 9).
    """

    pass_seconds: float
    read_floor_seconds: float
    upload_floor_seconds: float
    compute_floor_seconds: float
    ratio: float
    recording_ratio: float
    passes: int
    ratios: tuple[float, ...]
    pass_seconds_each: tuple[float, ...]
    recorded_seconds_each: tuple[float, ...]
    read_floor_seconds_each: tuple[float, ...]
    upload_floor_seconds_each: tuple[float, ...]
    compute_floor_seconds_each: tuple[float, ...]
    compute_floor_aliased: bool
    first_group_wait_seconds: float
    group_wait_seconds: float
    read_bytes_per_pass: float
    needed_bytes_per_pass: float

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


async def bench_pass(
    folder: Path, settings: dict[str, Any], passes: int, progress: Progress
) -> tuple[PassReport, Recording]:
    """Measure read floor, compute floor, pass and recorded pass in turn, `passes` times, with one token per pass.

    The recording is the last round's.
    """
    # Opened first, so that its plan counts no floor's memory; the floors have the rest of the machine.
    async with Model.open(folder, **settings) as model:
        beside = {**settings, "residency": False, "host_memory": None, "gpu_memory": None}
        runtime = await asyncio.to_thread(build, folder, Config.from_arguments(beside))
        try:
            floors = Floors(runtime, model.runtime.residency)
            progress("loading every group once, for the compute floor")
            loaded = await floors.load()
            await floors.compute_seconds(loaded)
            progress("one pass, in which what stays is loaded")
            await _steady_pass_seconds(model)
            report = await _rounds(model, floors, loaded, passes, progress)
            trace = model.runtime.line.trace
            return report, Recording(trace.spans, trace.counts, describe(model.runtime, "bench pass"))
        finally:
            await runtime.aclose()


async def _rounds(model: Model, floors: Floors, loaded: Loaded, passes: int, progress: Progress) -> PassReport:
    reads, uploads, computes, streamed, recorded, waits, firsts = [], [], [], [], [], [], []
    moved = model.statistics()
    for index in range(passes):
        progress(f"round {index + 1}/{passes}: reading alone")
        reads.append(await floors.read_seconds())
        uploads.append(await floors.upload_seconds())
        progress(f"round {index + 1}/{passes}: computing alone")
        computes.append(await floors.compute_seconds(loaded))
        progress(f"round {index + 1}/{passes}: both at once")
        plain_first = index % 2 == 0  # a pass right behind another is not quite like one behind a pause
        if plain_first:
            streamed.append(await _steady_pass_seconds(model))
        async with model.recording() as trace:
            recorded.append(await _steady_pass_seconds(model))
        if not plain_first:
            streamed.append(await _steady_pass_seconds(model))
        first, each = _waits(trace, len(loaded.messages))
        firsts.append(first)
        waits.append(each)
        progress(
            f"round {index + 1}/{passes}: read {reads[-1]:.3f}, compute {computes[-1]:.3f}, pass {streamed[-1]:.3f} s"
        )
    floor = [max(each) for each in zip(reads, uploads, computes, strict=True)]
    ratios = [one / least for one, least in zip(streamed, floor, strict=True)]
    costs = [with_trace / without for with_trace, without in zip(recorded, streamed, strict=True)]
    after = model.statistics()
    ran = after.passes - moved.passes
    return PassReport(
        statistics.median(streamed),
        statistics.median(reads),
        statistics.median(uploads),
        statistics.median(computes),
        statistics.median(ratios),
        statistics.median(costs),
        passes,
        tuple(ratios),
        tuple(streamed),
        tuple(recorded),
        tuple(reads),
        tuple(uploads),
        tuple(computes),
        loaded.aliased,
        statistics.median(firsts),
        statistics.median(waits),
        (after.bytes_read - moved.bytes_read) / ran,
        (after.bytes_needed - moved.bytes_needed) / ran,
    )


async def _steady_pass_seconds(model: Model) -> float:
    """The time from the end of one pass to the end of the next.

    The line stands full when the call comes, so the first two passes profit from what was read before; the third
    begins behind a pass that streamed all its groups.
    """
    ends = []
    async for _ in model.stream([1], max_new_tokens=3, ignore_eos=True):
        ends.append(time.perf_counter())
    return ends[2] - ends[1]


def _waits(trace: Trace, groups_per_pass: int) -> tuple[float, float]:
    """Seconds that the compute scheduler waited for the first group of the last pass, and on average for a group."""
    spans = [span for span in trace.spans if span.actor == "compute_scheduler"]
    waits = {span.seq: span.ended - span.started for span in spans if span.what == "message"}
    last_pass = max(span.seq for span in spans) // groups_per_pass
    seqs = range(last_pass * groups_per_pass, (last_pass + 1) * groups_per_pass)
    return waits.get(seqs[0], 0.0), sum(waits.get(seq, 0.0) for seq in seqs) / groups_per_pass
