"""How this disk is best read: measured in about half a second when a model is opened, and kept for the next time.

Candidates take turns in reading the checkpoint's own files, each time another extent. Where the CPU computes, it
multiplies meanwhile as a model does: alone one lane may read as fast as four, beside computing it does not.
"""

import asyncio
import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pipeline.checkpoints.shard import Shard
from pipeline.devices.lane import Lane
from pipeline.devices.memory import HostMemory
from pipeline.groups.layout import Window
from pipeline.reading.lanes import LANES
from pipeline.reading.reading import DEFAULT, MIB, WAYS, Reading
from pipeline.reading.reading_cache import cache_file, disk_key, keep, kept
from pipeline.reading.reading_lane import Disk, ReadingLane, ReadingLanes
from pipeline.system.guard import attempt
from pipeline.system.page_cache import advise
from pipeline.system.sizes import human_bytes

CANDIDATES = (
    DEFAULT,
    Reading(lanes=1, chunk_bytes=32 * MIB),
    Reading(lanes=2, chunk_bytes=32 * MIB),
    Reading(lanes=4, chunk_bytes=4 * MIB),
    Reading(lanes=4, chunk_bytes=16 * MIB),
    Reading(lanes=8, chunk_bytes=8 * MIB),
    *(Reading(way=way) for way in WAYS[1:]),
    Reading(direct=False),
)
CONTRASTS = {"aiofiles": Reading(way="aiofiles"), "buffered": Reading(direct=False), "1 lane": CANDIDATES[1]}
"""Ways whose rates are told beside that of the chosen one."""
ROUNDS = 3
TRIAL_BYTES = 64 * MIB
COMPUTED = (4096, 4096)
LEAST_BYTES = 256 * MIB
"""Smaller checkpoints are read with the default: measuring would take as long as several passes."""
LONGEST_SECONDS = 1.5
FIRST_BYTES, FIRST_TIMES = MIB, 8
"""A disk is too slow for trials if so many bytes take it longer than `LONGEST_SECONDS` divided by so much."""
BETTER_BY = {True: 1.05, False: 1.25}
"""By how much a direct way must beat the default, and a buffered one, which copies every byte and takes half a core."""


@dataclass(frozen=True, slots=True)
class ReadingChoice:
    """How the disk is read, and why; the rate where it was measured."""

    chosen: Reading
    why: str
    bytes_per_second: float | None = None

    def __str__(self) -> str:
        return f"{self.chosen}: {self.why}"


def choose_reading(
    files: Mapping[Path, Shard], given: Mapping[str, object], *, beside: bool, has_experts: bool
) -> ReadingChoice:
    """The best way to read these files, `beside` computing on the CPU. What is `given`, fields of `Reading`, stays.

    Experts, where a model has some, are short reads that are asked for one by one: between two of them the disk would
    rest if there were one lane. Call it on a thread without an event loop. What cannot be measured is read with the
    default.
    """
    default: Reading = replace(DEFAULT, **given)  # type: ignore[arg-type]
    if given.keys() == {"lanes", "chunk_bytes"} or len(given) == len(asdict(DEFAULT)):
        return ReadingChoice(default, "as the settings say")
    if sum(one.size for one in files.values()) < LEAST_BYTES:
        return ReadingChoice(default, "the default, for few bytes")
    largest = max(files.values(), key=lambda shard: shard.size)
    return attempt(
        "how the disk is best read cannot be measured",
        lambda: _measured_choice(largest, given, beside, has_experts),
        ReadingChoice(default, "the default, for nothing could be measured"),
        "the default is taken; set reader_lanes and chunk_bytes, and nothing is measured",
    )


def _measured_choice(shard: Shard, given: Mapping[str, object], beside: bool, has_experts: bool) -> ReadingChoice:
    cache, key = cache_file(), disk_key(shard, beside)
    rates = kept(cache, key)
    since = "measured before"
    if rates is None:
        with _computing() if beside else contextlib.nullcontext():
            rates, since = asyncio.run(_measure(shard)), "measured now"
        if not rates:  # a warning has said so
            return ReadingChoice(replace(DEFAULT, **{"direct": False, **given}), "the file system refuses direct reads")  # type: ignore[arg-type]
        keep(cache, key, rates)
    chosen = best_reading({one: rate for one, rate in rates.items() if one.lanes > 1 or not has_experts})
    others = ", ".join(
        f"{name} {rates[one] / 1e9:.2f}" for name, one in CONTRASTS.items() if one in rates and one != chosen
    )
    chosen_because = f"{rates[chosen] / 1e9:.2f} GB/s{' beside computing' if beside else ''}, {since}"
    why = chosen_because + (f" ({others})" if others else "")
    return ReadingChoice(replace(chosen, **given), why, rates[chosen])  # type: ignore[arg-type]


def best_reading(rates: Mapping[Reading, float]) -> Reading:
    """The fastest, in bytes per second, of those that beat the default by more than chance; else the default."""
    better = [one for one, rate in rates.items() if rate > BETTER_BY[one.direct] * rates[DEFAULT]]
    return max(better, key=rates.__getitem__, default=DEFAULT)


@contextlib.contextmanager
def _computing() -> Iterator[None]:
    """Multiply, on a lane as the model computes on one, until the end of the `with`."""
    ended = threading.Event()
    matrix_FD, vector_D = torch.zeros(*COMPUTED, dtype=torch.bfloat16), torch.zeros(COMPUTED[1], dtype=torch.bfloat16)

    def compute() -> None:
        while not ended.is_set():
            torch.mv(matrix_FD, vector_D)

    lane = Lane("trial-computing")
    try:
        lane.submit(compute, ())
        yield
    finally:
        ended.set()
        lane.close()


async def _measure(shard: Shard) -> dict[Reading, float]:
    """Bytes per second: medians over rounds in turn, in what time there is. Empty if direct reads are refused.

    Raises TimeoutError for a disk of which nothing can be measured in that time.
    """
    buffer = HostMemory(TRIAL_BYTES)
    disks = {direct: Disk({shard.path: shard}, direct) for direct in (True, False)}
    lanes = {one: LANES[one.way]("penstock-trial", one.lanes, disks[one.direct]) for one in CANDIDATES}
    trials: dict[Reading, list[float]] = {one: [] for one in CANDIDATES}
    starts = _extents(shard.size)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_SECONDS):
                await _try_disk(lanes[DEFAULT], shard.path, buffer)
                if not disks[True].direct:
                    return {}
                # Untimed: it maps the pages of the buffer.
                await _trial(lanes[DEFAULT], shard.path, next(starts), DEFAULT, buffer)
                for one in CANDIDATES * ROUNDS:
                    start = next(starts)
                    if one.direct or not _is_cached(shard, start):
                        trials[one].append(await _trial(lanes[one], shard.path, start, one, buffer))
    finally:
        for each in lanes.values():
            await each.aclose()
        buffer.free()
    if not trials[DEFAULT]:
        raise TimeoutError(f"the disk gave less than {human_bytes(TRIAL_BYTES)} in {LONGEST_SECONDS} s")
    return {one: statistics.median(some) for one, some in trials.items() if some}


async def _try_disk(lanes: ReadingLanes[ReadingLane], file: Path, buffer: HostMemory) -> None:
    """Read a little, for what is begun cannot be stopped. Raises TimeoutError where trials would take too long."""
    started = time.perf_counter()
    await lanes.read([Window(file, 0, FIRST_BYTES, 0)], buffer.view)
    if time.perf_counter() - started > LONGEST_SECONDS / FIRST_TIMES:
        raise TimeoutError


def _extents(size: int) -> Iterator[int]:
    """Where trials begin: one behind the other, so that nothing is read again before much else was."""
    while True:
        yield from range(0, max(1, size - TRIAL_BYTES + 1), TRIAL_BYTES)


async def _trial(lanes: ReadingLanes[ReadingLane], file: Path, start: int, one: Reading, buffer: HostMemory) -> float:
    sizes = {offset: min(one.chunk_bytes, TRIAL_BYTES - offset) for offset in range(0, TRIAL_BYTES, one.chunk_bytes)}
    chunks = [Window(file, start + offset, size, offset) for offset, size in sizes.items()]
    started = time.perf_counter()
    await lanes.read(chunks, buffer.view)
    return TRIAL_BYTES / (time.perf_counter() - started)


def _is_cached(shard: Shard, start: int) -> bool:
    """Whether some of a trial's bytes stay in the page cache, as just written ones do: then the trial says nothing.

    True where the file system cannot tell.
    """
    advise(shard.buffered, start, TRIAL_BYTES, "POSIX_FADV_DONTNEED")
    page = bytearray(1)

    def one_is() -> bool:
        for position in range(start, start + TRIAL_BYTES, TRIAL_BYTES // 16):
            with contextlib.suppress(BlockingIOError):
                if os.preadv(shard.buffered, [page], position, os.RWF_NOWAIT):
                    return True
        return False

    return attempt(
        f"{shard.path}: whether it is cached cannot be asked (RWF_NOWAIT)",
        one_is,
        True,
        "reads through the page cache are not measured; to have them all the same set direct_reads=False",
    )
