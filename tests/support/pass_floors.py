"""Passes of a model with experts on a CPU, against the larger of two floors: the disk's and that of computing.

    python tests/support/pass_floors.py CHECKPOINT --slots 410 [--requests 1,8,16] [--lookahead yes] [--rows-times 50]

The floor of the disk is the bytes that a pass reads by the rate of bare reads of experts, before and behind the passes;
that of computing a pass of the same model when all experts stay. Prints the rows of a table: requests, bytes read in a
pass, the median pass, the floors, and the median and the mean by the larger floor. With `--rows-times` the rows of the
embedding are multiplied in the checkpoint before: random ones add so little to what layers give that the next router
says nothing beforehand. Needs a checkpoint of `make-checkpoint`, and as much memory as it has.
"""

import argparse
import asyncio
import contextlib
import json
import random
import struct
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from pipeline import Model
from pipeline.devices.memory import HostMemory

SETTINGS: dict[str, Any] = {"device": "cpu", "context_tokens": 256, "max_requests": 32, "max_tokens_per_pass": 256}
PROMPT_TOKENS, WARM, PASSES, BARE, LANES = 5, 8, 8, 64, 8
SAMPLED: dict[str, Any] = {"max_new_tokens": WARM + PASSES + 2, "temperature": 1.0, "ignore_eos": True}
ALL = 1 << 14
"""Slots for more experts than there are."""


def multiply_rows(folder: Path, factor: float) -> None:
    """Multiply the rows of the embedding, in bf16, where they are stored."""
    for file in folder.glob("*.safetensors"):
        with file.open("r+b") as shard:
            (length,) = struct.unpack("<Q", shard.read(8))
            header = json.loads(shard.read(length))
            for name, tensor in header.items():
                if not name.endswith("embed_tokens.weight"):
                    continue
                begin, end = tensor["data_offsets"]
                shard.seek(8 + length + begin)
                items = np.frombuffer(shard.read(end - begin), np.uint16).astype(np.uint32) << 16
                multiplied = (items.view(np.float32) * np.float32(factor)).view(np.uint32) >> 16
                shard.seek(8 + length + begin)
                shard.write(multiplied.astype(np.uint16).tobytes())


async def bare_rate(model: Model, seed: int) -> float:
    """Bytes per second of experts in no order, eight at a time, into memory of their own."""
    line = model.runtime.expert_line
    assert line is not None
    keys, free = random.Random(seed).sample(list(line.room.catalog.order), BARE), asyncio.Queue[HostMemory]()
    # Taken before any is written to, as slots are: what one page of 2 MiB has of two of them is small pages otherwise.
    for memory in [HostMemory(line.room.slot_bytes["host"]) for _ in range(LANES)]:
        memory.view[:] = bytes(len(memory.view))
        free.put_nowait(memory)
    before, began = line.source.bytes_read, time.perf_counter()

    async def read(key: tuple[int, str]) -> None:
        memory = await free.get()
        await line.source.read_into(key, memory)
        free.put_nowait(memory)

    await asyncio.gather(*map(read, keys))
    return (line.source.bytes_read - before) / (time.perf_counter() - began)


async def passes(model: Model, requests: int, seed: int) -> tuple[list[float], float]:
    """Seconds of passes in which so many requests decode, and the bytes that one reads."""
    times, reads = list[float](), list[int]()

    async def follow(index: int) -> None:
        prompt = [(index * 17 + seed * 1000 + token) % 25000 for token in range(PROMPT_TOKENS)]
        stream = model.stream(prompt, seed=seed * 100 + index, **SAMPLED)
        async with contextlib.aclosing(stream) as chunks:
            async for _ in chunks:
                if not index:
                    times.append(time.perf_counter())
                    reads.append(model.runtime.source.bytes_read)

    await asyncio.gather(*map(follow, range(requests)))
    seconds = [later - earlier for earlier, later in pairwise(times)][WARM : WARM + PASSES]
    return seconds, (reads[WARM + PASSES] - reads[WARM]) / PASSES


async def measure(folder: Path, slots: int, requests: Sequence[int], turns: int, lookahead: bool | str) -> None:
    """Print the table."""
    computing = dict[int, float]()
    async with Model.open(folder, gpu_experts=ALL, **SETTINGS) as model:
        for count in requests:
            await passes(model, count, 1)  # the same tokens choose the same experts once more
            seconds, nbytes = await passes(model, count, 1)
            assert nbytes < 1e6, "experts have not stayed"
            computing[count] = median(seconds)
    async with Model.open(folder, gpu_experts=slots, lookahead=lookahead, **SETTINGS) as model:
        print(f"reads {model.runtime.reading}", flush=True)
        await passes(model, max(requests), 9)
        for turn in range(turns):
            for count in requests:
                before = await bare_rate(model, 2 * turn)
                seconds, nbytes = await passes(model, count, 2 + turn)
                rate = (before + await bare_rate(model, 2 * turn + 1)) / 2
                disk, floor = nbytes / rate, max(nbytes / rate, computing[count])
                print(
                    f"| {count} | {nbytes / 1e6:.0f} MB | {median(seconds) * 1e3:.1f} | {disk * 1e3:.1f} / "
                    f"{computing[count] * 1e3:.1f} | {median(seconds) / floor:.3f} ({fmean(seconds) / floor:.3f}) | "
                    f"{rate / 1e9:.2f} GB/s |",
                    flush=True,
                )


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--requests", default="1,8,16")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--lookahead", choices=("no", "yes", "auto"), default="no")
    parser.add_argument("--rows-times", type=float)
    given = parser.parse_args()
    if given.rows_times is not None:
        multiply_rows(given.checkpoint, given.rows_times)
    lookahead = {"no": False, "yes": True, "auto": "auto"}[given.lookahead]
    requests = [int(count) for count in given.requests.split(",")]
    asyncio.run(measure(given.checkpoint, given.slots, requests, given.turns, lookahead))


if __name__ == "__main__":
    main()
