"""How this disk is best read: measured in about half a second when a model is opened, and kept for the next time.

Candidates read other extents of the checkpoint's own files in turn; where the CPU computes, beside products of the kind
that computing is made of: alone one lane may read as fast as four, and beside computing it does not.
"""

import asyncio
import contextlib
import datetime
import json
import logging
import os
import platform
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pipeline.devices.memory import HostMemory
from pipeline.small_files import CONFIG_LIMIT_BYTES, read_json_file
from pipeline.weights.lane import Chunk, Disk, Lane, Lanes
from pipeline.weights.lanes import open_lanes
from pipeline.weights.reading import MIB, WAYS, Reading
from pipeline.weights.shard import Shard, advise

logger = logging.getLogger("penstock")
VERSION = 2
DEFAULT = Reading()
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
ROUNDS = 3
TRIAL_BYTES = 64 * MIB
COMPUTED = (4096, 4096)
LEAST_BYTES = 256 * MIB
"""Smaller checkpoints are read with the default: measuring would take as long as several passes."""
LONGEST_SECONDS = 1.5
BETTER_BY = {True: 1.05, False: 1.25}
"""By how much a direct way must beat the default, and a buffered one, which copies every byte and takes half a core."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How the disk is read, and why."""

    reading: Reading
    why: str

    def __str__(self) -> str:
        return f"{self.reading}: {self.why}"


def choose_reading(files: Mapping[Path, Shard], given: Mapping[str, object], *, beside: bool) -> Choice:
    """The best way to read these files, `beside` computing on the CPU. What is `given`, fields of `Reading`, stays.

    Call it on a thread without an event loop. Raises OSError when the disk fails.
    """
    if given.keys() == {"lanes", "chunk_bytes"} or len(given) == len(asdict(DEFAULT)):
        return Choice(replace(DEFAULT, **given), "as the settings say")  # type: ignore[arg-type]
    if sum(one.size for one in files.values()) < LEAST_BYTES:
        return Choice(replace(DEFAULT, **given), "the default, for few bytes")  # type: ignore[arg-type]
    largest = max(files.values(), key=lambda shard: shard.size)
    cache, key = _cache_file(), _disk_key(largest, beside)
    rates = _kept(cache, key)
    since = "measured before"
    if rates is None:
        with _computing() if beside else contextlib.nullcontext():
            rates, since = asyncio.run(_measure(largest)), "measured now"
        if DEFAULT not in rates:  # a warning has said so
            return Choice(replace(DEFAULT, **{"direct": False, **given}), "the file system refuses direct reads")  # type: ignore[arg-type]
        _keep(cache, key, rates)
    chosen = best_reading(rates)
    others = ", ".join(f"{name} {rates[one] / 1e9:.2f}" for name, one in _contrasts(chosen) if one in rates)
    told = f"{rates[chosen] / 1e9:.2f} GB/s{' beside computing' if beside else ''}, {since}"
    return Choice(replace(chosen, **given), told + (f" ({others})" if others else ""))  # type: ignore[arg-type]


def best_reading(rates: Mapping[Reading, float]) -> Reading:
    """The fastest, in bytes per second, of those that beat the default by more than chance; else the default."""
    better = [one for one, rate in rates.items() if rate > BETTER_BY[one.direct] * rates[DEFAULT]]
    return max(better, key=rates.__getitem__, default=DEFAULT)


def _contrasts(chosen: Reading) -> Iterator[tuple[str, Reading]]:
    """What people ask about."""
    named = {"aiofiles": Reading(way="aiofiles"), "buffered": Reading(direct=False), "1 lane": CANDIDATES[1]}
    yield from ((name, one) for name, one in named.items() if one != chosen)


@contextlib.contextmanager
def _computing() -> Iterator[None]:
    """Multiply, with the threads that the user's torch has, until the end of the `with`."""
    ended = threading.Event()
    matrix_FD, vector_D = torch.zeros(*COMPUTED, dtype=torch.bfloat16), torch.zeros(COMPUTED[1], dtype=torch.bfloat16)

    def compute() -> None:
        while not ended.is_set():
            torch.mv(matrix_FD, vector_D)

    thread = threading.Thread(target=compute, name="penstock-trial-computing")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


async def _measure(shard: Shard) -> dict[Reading, float]:
    """Bytes per second: medians over rounds in turn, in what time there is. Empty if direct reads are refused."""
    buffer = HostMemory(TRIAL_BYTES)
    disks = {direct: Disk({shard.path: shard}, direct) for direct in (True, False)}
    lanes = {one: open_lanes("penstock-trial", one.way, one.lanes, disks[one.direct]) for one in CANDIDATES}
    starts = _extents(shard.size)
    try:
        await _trial(lanes[DEFAULT], shard.path, next(starts), DEFAULT, buffer)  # touches the buffer
        if not disks[True].direct:
            return {}
        deadline = time.perf_counter() + LONGEST_SECONDS
        trials: dict[Reading, list[float]] = {DEFAULT: []}
        for one in CANDIDATES * ROUNDS:
            start = next(starts)
            if trials[DEFAULT] and (time.perf_counter() > deadline or (not one.direct and _is_cached(shard, start))):
                continue
            trials.setdefault(one, []).append(await _trial(lanes[one], shard.path, start, one, buffer))
        return {one: statistics.median(some) for one, some in trials.items()}
    finally:
        for each in lanes.values():
            await each.aclose()
        buffer.free()


def _extents(size: int) -> Iterator[int]:
    """Where trials begin: one behind the other, so that nothing is read again before much else was."""
    start = 0
    while True:
        start = start if start + TRIAL_BYTES <= size else 0
        yield start
        start += TRIAL_BYTES


async def _trial(lanes: Lanes[Lane], file: Path, start: int, one: Reading, buffer: HostMemory) -> float:
    sizes = {offset: min(one.chunk_bytes, TRIAL_BYTES - offset) for offset in range(0, TRIAL_BYTES, one.chunk_bytes)}
    chunks = [Chunk(file, start + offset, size, offset) for offset, size in sizes.items()]
    started = time.perf_counter()
    await lanes.read(chunks, buffer.view)
    return TRIAL_BYTES / (time.perf_counter() - started)


def _is_cached(shard: Shard, start: int) -> bool:
    """Whether something of a trial's bytes stays in the page cache, as what was just written does: it says nothing."""
    advise(shard.buffered, start, TRIAL_BYTES, "POSIX_FADV_DONTNEED")
    page = bytearray(1)
    for position in range(start, start + TRIAL_BYTES, TRIAL_BYTES // 16):
        with contextlib.suppress(BlockingIOError):
            if os.preadv(shard.buffered, [page], position, os.RWF_NOWAIT):
                return True
    return False


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "reading.json"


def _disk_key(shard: Shard, beside: bool) -> str:
    """The file system and what it is mounted from, and the machine: device numbers may change when it starts anew."""
    device = shard.identity.device
    wanted, mounted = f"{os.major(device)}:{os.minor(device)}", "unknown"
    mounts = Path("/proc/self/mountinfo")
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        place, _, what = line.partition(" - ")
        if place.split()[2] == wanted:
            mounted = " ".join(what.split()[:2])
    used = f"{torch.get_num_threads()} threads compute" if beside else "nothing beside"
    return f"{mounted} on {platform.node()}, {platform.release()}, {os.cpu_count()} cores, {used}"


def _kept(cache: Path, key: str) -> dict[Reading, float] | None:
    """What was measured before; a cache that nobody can make sense of is none."""
    try:
        if not os.path.lexists(cache):
            return None
        kept = read_json_file(cache, CONFIG_LIMIT_BYTES)
        if kept["version"] != VERSION or key not in kept["disks"]:
            return None
        rates = {Reading(**one["reading"]): float(one["bytes_per_second"]) for one in kept["disks"][key]["rates"]}
        return rates if rates[DEFAULT] else None
    except Exception as error:
        logger.warning("%s: cannot be used, so the disk is measured again: %s", cache, error)
        return None


def _keep(cache: Path, key: str, rates: Mapping[Reading, float]) -> None:
    """Add a disk to the cache, by renaming a whole file; where that fails the next model measures again."""
    told = [{"reading": asdict(one), "bytes_per_second": rate} for one, rate in rates.items()]
    try:
        disks = read_json_file(cache, CONFIG_LIMIT_BYTES)["disks"] if cache.exists() else {}
    except Exception:
        disks = {}
    disks[key] = {"measured": datetime.date.today().isoformat(), "rates": told}
    new = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps({"version": VERSION, "disks": disks}, indent=1))
        new.replace(cache)
    except OSError as error:
        logger.warning("%s: how the disk is best read cannot be kept: %s", cache, error)
