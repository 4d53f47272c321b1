"""What a layer keeps between passes lies in cells of one size, and moves by them: what the layouts of layers share."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from actors.core.ports import Copy
from pipeline.groups.layout import merge_copies
from pipeline.models.attention import LayerKV
from pipeline.models.delta_state import LayerState
from pipeline.state.cached import CachedPiece


class CellLayout(Protocol):
    """The cells of one layer, wherever they are: a run of bytes each, a multiple of 4096. Layers alike have equal ones.

    `cell` is what errors call one.
    """

    @property
    def cell(self) -> str:
        """The name of a cell."""

    @property
    def cell_bytes(self) -> int:
        """The bytes from the beginning of one cell to that of the next."""

    @property
    def layer_bytes(self) -> int:
        """All cells of the layer."""

    @property
    def pass_bytes(self) -> int:
        """The most that a pass looks at."""

    @property
    def contents(self) -> dict[str, int]:
        """The bytes of what fills the cells, by its name."""

    def view(self, memory: torch.Tensor) -> LayerKV | LayerState:
        """What the mixer of the layer computes with, in memory that may be longer, uint8 [bytes]."""

    def cached_cells(self, pieces: Sequence[CachedPiece]) -> list[Copy]:
        """The cells that the sequences of a pass look back at, in ascending order; neighbours travel in one copy."""

    def new_cells(self, pieces: Sequence[CachedPiece]) -> list[Copy]:
        """What a pass writes of them, as runs of bytes in ascending order."""

    def holds(self, piece: CachedPiece, cell: int) -> bool:
        """Whether the piece of a pass needs the cell."""


def runs(cells: Iterable[int], cell_bytes: int) -> list[Copy]:
    """Whole cells, as runs of bytes."""
    return merge_copies(Copy(cell * cell_bytes, cell * cell_bytes, cell_bytes) for cell in sorted(cells))


def cells_of(copies: Iterable[Copy], cell_bytes: int) -> list[int]:
    """The cells that these runs of bytes lie in, each once."""
    ends = ((one.source_offset // cell_bytes, (one.source_offset + one.length - 1) // cell_bytes) for one in copies)
    return sorted({cell for first, last in ends for cell in range(first, last + 1)})
