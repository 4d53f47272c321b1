"""A weight file, a source over it, and a disk whose reads do as the test says."""

import asyncio
import io
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pipeline.weights.checkpoint import FileIdentity
from pipeline.weights.layout import BLOCK_BYTES, HostLayout, Window
from pipeline.weights.source import WeightSource

CHUNKS = 6
GROUP_BYTES = CHUNKS * BLOCK_BYTES
TAIL_BYTES = 1234
FILE_BYTES = 3 * GROUP_BYTES + TAIL_BYTES


def layouts(file: Path) -> dict[tuple[int, str], HostLayout]:
    """Group 0, 1 and 2 are a window each; "ends" is the first block and the last, which the file does not fill."""
    groups = {
        (layer, "attn"): HostLayout((Window(file, layer * GROUP_BYTES, GROUP_BYTES, 0),), {}, GROUP_BYTES, GROUP_BYTES)
        for layer in range(3)
    }
    windows = (Window(file, 0, BLOCK_BYTES, 0), Window(file, 3 * GROUP_BYTES, BLOCK_BYTES, BLOCK_BYTES))
    return groups | {(3, "ends"): HostLayout(windows, {}, 2 * BLOCK_BYTES, BLOCK_BYTES + TAIL_BYTES)}


@asynccontextmanager
async def opened(file: Path, **options: Any) -> AsyncIterator[WeightSource]:
    """A source that reads a block at a time."""
    identities = {file: FileIdentity.of(os.stat(file))}
    source = WeightSource(layouts(file), identities, **{"chunk_bytes": BLOCK_BYTES, **options})
    try:
        yield source
    finally:
        await source.aclose()


class Gate:
    """A disk whose reads wait, fail or stop short as the test says. It ignores O_DIRECT, so that any length is fine.

    `before` runs in the lane's thread with the position of each read and returns how many bytes may be read.
    """

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.before: Callable[[int], int | None] = lambda position: None
        self.after_open: Callable[[], None] = lambda: None
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

    def open_file(self, file: Path, *_: object, **__: object) -> io.FileIO:
        """What lanes call instead of the builtin `open`."""
        opened = _GatedFile(file, self)
        self.after_open()
        return opened


class _GatedFile(io.FileIO):
    def __init__(self, file: Path, gate: Gate) -> None:
        super().__init__(file)
        self._gate = gate

    def readinto(self, buffer: Any, /) -> int | None:
        position = self.tell()
        self._gate.begun.append(position)
        limit = self._gate.before(position)
        count = super().readinto(memoryview(buffer)[:limit])
        self._gate.ended.append(position)
        return count


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)
