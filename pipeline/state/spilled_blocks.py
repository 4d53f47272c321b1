"""KV blocks in the spill file, layer by layer: in which order they are read and written, and what follows a failure."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from actors.core.errors import ActorFailed
from actors.core.line import numbered
from actors.core.ports import Copy
from pipeline.devices.memory import HostMemory
from pipeline.state.cached import CachedPiece
from pipeline.state.cell_layout import CellLayout, cells_of
from pipeline.state.cell_layout import runs as cell_runs
from pipeline.state.kv_memory import KvMemory
from pipeline.state.spill_file import Region, SpillError, SpillFile

logger = logging.getLogger("penstock")
KV = "kv"
"""The name of KV blocks as a companion: of their messages, and first in the names of their actors and budgets."""


class SpilledBlocks:
    """A read or a write that fails is tried once more, block by block.

    The requests of the pass that hold a block which fails again end, and they alone; `lose` is told of the block.
    """

    def __init__(
        self,
        memory: KvMemory,
        spill: SpillFile,
        lose: Mapping[type[CellLayout], Callable[[int], None]],
        section: int | None = None,
    ) -> None:
        self._spill = spill
        self._regions = memory.spill_regions
        self._layouts = memory.layouts
        self._lose = lose
        self._section = section
        self._written = {layer: asyncio.Event() for layer in self._regions}
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
        move: Callable[[Region, Sequence[Copy], memoryview], Awaitable[None]],
        layer: int,
        runs: Sequence[Copy],
        buffer: HostMemory,
        actor: str,
        pieces: Sequence[CachedPiece],
    ) -> None:
        region, layout = self._regions[layer], self._layouts[layer]
        try:
            await move(region, runs, buffer.view)
            return
        except (OSError, SpillError) as error:
            logger.warning("%s %ss of layer %d failed, trying once more: %s", what, layout.cell, layer, error)
        for cell in cells_of(runs, layout.cell_bytes):
            try:
                await move(region, cell_runs([cell], layout.cell_bytes), buffer.view)
            except (OSError, SpillError) as error:
                self._lose[type(layout)](cell)
                for piece in pieces:
                    if layout.holds(piece, cell):
                        name = numbered(f"{KV}_{actor}", self._section)
                        piece.sequence.fail(ActorFailed(name, layer, KV, error))
