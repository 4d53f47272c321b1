"""Measures how fast the disk is read, by the number of lanes and the size of a chunk."""

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator

from actors.core.message import READY, GroupKey
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.reading.source import CheckpointSource
from pipeline.tools.bench.candidates import ReadSizes, Samples

MIB = 1 << 20
READINGS = tuple(ReadSizes(lanes, chunk * MIB) for lanes in (1, 2, 4, 8) for chunk in (8, 32))
ROUNDS = 5
SWEEP_SECONDS, FEWEST_GROUPS = 0.3, 6
"""A sweep ends when it has lasted so long, and as many groups have landed."""


async def read_rates(runtime: ModelRuntime, progress: Callable[[str], None]) -> dict[ReadSizes, Samples]:
    """Bytes per second of each, measured in turn and several times, so that a drift of the machine hits all alike.

    All read into the same host slots; the line of the `runtime` must not run.
    """
    files = runtime.checkpoint.files
    async with contextlib.AsyncExitStack() as stack:
        sources = {}
        for lanes, chunk_bytes in READINGS:
            sizes = dataclasses.replace(runtime.source.reading, lanes=lanes, chunk_bytes=chunk_bytes)
            source = CheckpointSource(runtime.catalog.host, files, sizes)
            stack.push_async_callback(source.aclose)
            sources[ReadSizes(lanes, chunk_bytes)] = source
        progress("reading: touching all slots once")
        await sweep(runtime, sources[READINGS[0]])
        rates: dict[ReadSizes, list[float]] = {reading: [] for reading in sources}
        for index, (reading, source) in itertools.product(range(ROUNDS), sources.items()):
            described = f"{reading.reader_lanes} lanes x {reading.chunk_bytes / MIB:g} MiB"
            progress(f"reading: round {index + 1}/{ROUNDS}, {described}")
            rates[reading].append(await sweep(runtime, source))
    return {reading: Samples(tuple(values)) for reading, values in rates.items()}


async def sweep(runtime: ModelRuntime, source: CheckpointSource) -> float:
    """Read groups in compute order, as many at a time as there are host slots; bytes per second while lanes are busy.

    Measured from the landing of the first group to the last that landed in time: before and after that the disk's
    queue fills and drains.
    """
    host, *_ = runtime.line.budgets
    until = time.perf_counter() + SWEEP_SECONDS
    landed: list[tuple[float, int]] = []
    keys = itertools.cycle(runtime.catalog.order)

    def wanted() -> Iterator[GroupKey]:
        while len(landed) < FEWEST_GROUPS or time.perf_counter() < until:
            yield next(keys)

    async def read_on() -> None:
        for key in wanted():
            slot = await host.acquire(runtime.catalog.kind(key))
            try:
                await source.read_into(key, slot.buffer)
            finally:
                slot.release(after=READY)
            landed.append((time.perf_counter(), source.bytes_read))

    workers = [read_on() for _ in range(host.statistics().capacity)]
    # With return_exceptions a gather ends only after its last worker: no read goes into a slot that is closed.
    for outcome in await asyncio.gather(*workers, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
    in_time = max(FEWEST_GROUPS, sum(moment <= until for moment, _ in landed))
    (started, first_bytes), (ended, last_bytes) = landed[0], landed[in_time - 1]
    return (last_bytes - first_bytes) / (ended - started)
