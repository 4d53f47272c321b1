"""`penstock bench open`: opening, the first group, a pass, and what the runtime itself costs, by size of the model."""

import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.core.trace import Span, Trace
from pipeline.api import Model
from pipeline.config import Config
from pipeline.generation.build import build
from pipeline.tools.bench.arm_program import Progress
from pipeline.tools.bench.steady_passes import room_for, steady_pass_seconds
from pipeline.tools.trace.recording import COMPUTE, DISK

IDLE_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeningReport:
    """One model; each list is over the rounds, in each of which it was opened anew.

    `first_group_seconds` is from the end of `Model.open` to the end of the first group's computation, for a request
    that is there at once, and `rested_group_seconds` the same from a request that comes when the line stands full.
    `line_read_seconds` is what reading that group took in the line, beside the groups behind it, `first_read_seconds`
    what it takes alone. `loop_group_seconds` is the CPU time of the event loop's thread, on which all actors run, by
    weight group of a pass; `idle_share` the CPU time of the whole process by time, while no request runs.
    """

    model: str
    groups: int
    moving_groups: int
    streamed_bytes: int
    open_seconds: tuple[float, ...]
    first_group_seconds: tuple[float, ...]
    line_read_seconds: tuple[float, ...]
    first_read_seconds: tuple[float, ...]
    rested_group_seconds: tuple[float, ...]
    pass_seconds: tuple[float, ...]
    loop_group_seconds: tuple[float, ...]
    idle_share: tuple[float, ...]

    @property
    def first_ratio(self) -> float:
        """The time of the first group divided by its own read time."""
        pairs = zip(self.first_group_seconds, self.first_read_seconds, strict=True)
        return statistics.median(took / read for took, read in pairs)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "first_ratio": self.first_ratio}


async def bench_opening(
    folder: Path, settings: Mapping[str, Any], rounds: int, passes: int, progress: Progress
) -> OpeningReport:
    """Open the model so many times, each time with so many passes; once before, so that nothing is measured first."""
    settings = {**room_for(1), **settings}
    progress(f"{folder.name}: opening it for the first time")
    runtime = await asyncio.to_thread(build, folder, Config.from_arguments(settings))
    await runtime.aclose()
    columns: dict[str, list[float]] = {}
    for index in range(rounds):
        progress(f"{folder.name}: round {index + 1}/{rounds}")
        for name, value in (await _round(folder, settings, passes)).items():
            columns.setdefault(name, []).append(value)
    first = runtime.device.places[0].name
    sizes = runtime.catalog.group_bytes(first)
    return OpeningReport(
        model=folder.name,
        groups=len(sizes),
        moving_groups=runtime.moving_groups,
        streamed_bytes=runtime.residency.moving_bytes(first, sizes),
        **{name: tuple(values) for name, values in columns.items()},
    )


async def _round(folder: Path, settings: Mapping[str, Any], passes: int) -> dict[str, float]:
    trace, started = Trace(), time.perf_counter()
    model = await Model.open(folder, trace=trace, **settings)
    opened = time.perf_counter()
    try:
        computed = await _first_computed(model, trace)
        read = next(span for span in trace.spans if (span.actor, span.what) == (DISK, "work"))
        trace.recording = False
        await steady_pass_seconds(model, 1, 1)
        groups, on_loop = len(model.runtime.catalog.order), time.thread_time()
        seconds = await steady_pass_seconds(model, 1, passes)
        on_loop = time.thread_time() - on_loop
        busy, since = time.process_time(), time.perf_counter()
        await asyncio.sleep(IDLE_SECONDS)
        idle = (time.process_time() - busy) / (time.perf_counter() - since)
        async with model.recording():
            asked = time.perf_counter()
            rested = await _first_computed(model, trace)
    finally:
        await model.aclose()
    return {
        "open_seconds": opened - started,
        "first_group_seconds": computed.ended - opened,
        "line_read_seconds": read.ended - read.started,
        "first_read_seconds": await _first_read_seconds(folder, settings),
        "rested_group_seconds": rested.ended - asked,
        "pass_seconds": statistics.median(seconds),
        "loop_group_seconds": on_loop / groups / (passes + 2),
        "idle_share": idle,
    }


async def _first_computed(model: Model, trace: Trace) -> Span:
    """Ask for a token of a prompt whose row of the embedding is in no cache; the first computation for it."""
    token_id = random.randrange(model.runtime.config.vocabulary_size)
    await model.generate([token_id], max_new_tokens=1, ignore_eos=True)
    model.runtime.line.statistics()  # operations that have ended are traced here
    return next(span for span in trace.spans if (span.actor, span.what) == (COMPUTE, "work"))


async def _first_read_seconds(folder: Path, settings: Mapping[str, Any]) -> float:
    """Measure a read of the first group with nothing beside it, into memory that was not touched before either."""
    config = Config.from_arguments(settings)
    async with contextlib.aclosing(await asyncio.to_thread(build, folder, config)) as runtime:
        key = runtime.catalog.order[0]
        host, *_ = runtime.line.budgets
        slot = await host.acquire(runtime.catalog.kind(key), key)
        started = time.perf_counter()
        await runtime.source.read_into(key, slot.buffer)
        return time.perf_counter() - started
