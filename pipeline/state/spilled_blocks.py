"""KV blocks in the spill file, layer by layer: in which order they are read and written, and what follows a failure."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence

from actors.core.errors import ActorFailed
from actors.core.ports import Copy
from pipeline.devices.memory import HostMemory
from pipeline.state.cached import CachedPiece
from pipeline.state.kv_memory import KvMemory
from pipeline.state.spill_file import SpillError, SpillFile

logger = logging.getLogger("penstock")
KV = "kv"
"""The name of KV blocks as a companion: of their messages, and first in the names of their actors and budgets."""


class SpilledBlocks:
    """A read or a write that fails is tried once more, block by block.

    The requests of the pass that hold a block which fails again end, and they alone; `lose` is told of the block.
    """

    def __init__(self, memory: KvMemory, spill: SpillFile, lose: Callable[[int], None]) -> None:
        self._spill = spill
        self._starts = memory.spill_starts
        self._block_bytes = memory.layout.block_bytes
        self._lose = lose
        self._written = {layer: asyncio.Event() for layer in self._starts}
        self.forget()

    def forget(self) -> None:
        """Let no read wait for a write of a pass that has failed; the lines have stopped."""
        for written in self._written.values():
            written.set()

    async def written(self, layer: int) -> None:
        """Wait until the pass before has written the layer, from another slot than the one to read into."""
        await self._written[layer].wait()
        self._written[layer].clear()

    async def read(self, layer: int, runs: Sequence[Copy], buffer: HostMemory, pieces: Sequence[CachedPiece]) -> None:
        """Read whole blocks of a layer into its host slot, for the pieces of this pass."""
        await self._move("reading", self._spill.read, layer, runs, buffer, "reader", pieces)

    async def write(self, layer: int, runs: Sequence[Copy], buffer: HostMemory, pieces: Sequence[CachedPiece]) -> None:
        """Write whole blocks of a layer from its host slot."""
        await self._move("writing", self._spill.write, layer, runs, buffer, "swapper", pieces)
        self._written[layer].set()

    async def _move(
        self,
        what: str,
        move: Callable[[int, Sequence[Copy], memoryview], Awaitable[None]],
        layer: int,
        runs: Sequence[Copy],
        buffer: HostMemory,
        actor: str,
        pieces: Sequence[CachedPiece],
    ) -> None:
        start, size = self._starts[layer], self._block_bytes
        try:
            await move(start, runs, buffer.view)
            return
        except (OSError, SpillError) as error:
            logger.warning("%s KV blocks of layer %d failed, trying once more: %s", what, layer, error)
        starts = (range(run.source_offset, run.source_offset + run.length, size) for run in runs)
        for offset in itertools.chain.from_iterable(starts):
            try:
                await move(start, (Copy(offset, offset, size),), buffer.view)
            except (OSError, SpillError) as error:
                block = offset // size
                self._lose(block)
                for piece in pieces:
                    if block in piece.sequence.blocks:
                        piece.sequence.fail(ActorFailed(f"{KV}_{actor}", layer, KV, error))
