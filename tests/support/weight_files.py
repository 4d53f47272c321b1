"""A weight file, a source over it, and a disk whose reads do as the test says."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from actors.core.ports import Copy
from pipeline.checkpoints import shard
from pipeline.checkpoints.shard import Shard
from pipeline.groups.layout import HostLayout, Window
from pipeline.reading.checksums import Checksums
from pipeline.reading.reading import WAYS, Reading
from pipeline.reading.source import CheckpointSource
from pipeline.system.page_cache import BLOCK_BYTES

CHUNKS = 6
GROUP_BYTES = CHUNKS * BLOCK_BYTES
TAIL_BYTES = 1234
FILE_BYTES = 3 * GROUP_BYTES + TAIL_BYTES
ODD = ((1001, 3 * BLOCK_BYTES + 7, 960), (FILE_BYTES - 1001, 1001, 4 * BLOCK_BYTES))
"""Where odd tensors begin in the file, how long they are, and where they belong in the slot."""
way = WAYS[0]
"""Set by a fixture of tests/reading to each of them in turn."""


def write_weights(folder: Path) -> Path:
    """A file of three groups and a bit, that ends inside a block, and is long since written."""
    path = folder / "weights"
    path.write_bytes(Random(0).randbytes(FILE_BYTES))
    os.utime(path, ns=(0, 0))
    return path


def layouts(file: Path) -> dict[tuple[int, str], HostLayout]:
    """Group 0, 1 and 2 are a window each; "ends" is the first block and the last, which the file does not fill; "odd"
    are bytes in the middle of two windows, of which the second is the last block."""
    groups = {
        (layer, "attn"): HostLayout((Window(file, layer * GROUP_BYTES, GROUP_BYTES, 0),), {}, GROUP_BYTES, GROUP_BYTES)
        for layer in range(3)
    }
    windows = (Window(file, 0, BLOCK_BYTES, 0), Window(file, 3 * GROUP_BYTES, BLOCK_BYTES, BLOCK_BYTES))
    blocks = (Window(file, 0, 4 * BLOCK_BYTES, 0), Window(file, 3 * GROUP_BYTES, BLOCK_BYTES, 4 * BLOCK_BYTES))
    moves = tuple(
        Copy(window.slot_offset + start - window.start, target, length)
        for window, (start, length, target) in zip(blocks, ODD, strict=True)
    )
    return groups | {
        (3, "ends"): HostLayout(windows, {}, 2 * BLOCK_BYTES, BLOCK_BYTES + TAIL_BYTES),
        (3, "odd"): HostLayout(blocks, {}, 5 * BLOCK_BYTES, sum(length for _, length, _ in ODD), moves),
    }


@asynccontextmanager
async def opened(file: Path, checksums: Checksums | None = None, **options: Any) -> AsyncIterator[CheckpointSource]:
    """A source that reads a block at a time, in the way that the test runs with."""
    weights = Shard(file)
    reading = Reading(**{"way": way, "chunk_bytes": BLOCK_BYTES, **options})
    source = CheckpointSource(layouts(file), {file: weights}, reading, checksums)
    try:
        yield source
    finally:
        await source.aclose()
        weights.close()


class Gate:
    """A disk whose reads wait, fail or stop short as the test says. It ignores O_DIRECT, so that any length is fine.

    `before` runs in the lane's thread with the position of each read and returns how many bytes may be read.
    """

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.before: Callable[[int], int | None] = lambda position: None
        self.open = threading.Event()

    def hold(self, *positions: int) -> None:
        """Reads at these positions, or at all, wait until `open` is set."""

        def wait(position: int) -> None:
            if not positions or position in positions:
                assert self.open.wait(10)

        self.before = wait

    async def until_begun(self, count: int) -> None:
        while len(self.begun) < count:
            await asyncio.sleep(0.001)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the gate between the lanes of either way and their files."""
        preadv, gate = os.preadv, self

        def gated(descriptor: int, buffers: list[memoryview], position: int) -> int:
            return gate._read(position, lambda limit: preadv(descriptor, [buffers[0][:limit]], position))

        monkeypatch.setattr(shard, "open_direct", lambda file: os.open(file, os.O_RDONLY))
        monkeypatch.setattr(os, "preadv", gated)

    def _read(self, position: int, read: Callable[[int | None], Any]) -> Any:
        self.begun.append(position)
        count = read(self.before(position))
        self.ended.append(position)
        return count


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)
