"""Where the recurrent state of a layer lies in memory, and which slots of it a pass moves. Arithmetic only.

A cell is a slot: the state of one sequence behind one position, padded to whole pages. Memory of one layer: [slots,
bytes of a cell].
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from actors.core.ports import Copy
from pipeline.models.delta_state import LayerState, StateParts
from pipeline.state.cached import CachedPiece
from pipeline.state.cell_layout import CellLayout, runs
from pipeline.system.page_cache import BLOCK_BYTES
from pipeline.system.sizes import human_bytes


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The slots of one layer, wherever they are: as many as `requests` that may run, and `snapshots` more."""

    requests: int
    snapshots: int
    parts: StateParts

    @property
    def cell(self) -> str:
        """The name of a cell."""
        return "recurrent state"

    @property
    def cell_bytes(self) -> int:
        """The bytes from the beginning of one slot to that of the next."""
        return -(-self.parts.nbytes // BLOCK_BYTES) * BLOCK_BYTES

    @property
    def layer_bytes(self) -> int:
        """All slots of one layer."""
        return (self.requests + self.snapshots) * self.cell_bytes

    @property
    def pass_bytes(self) -> int:
        """A pass looks at one slot for each request."""
        return self.requests * self.cell_bytes

    @property
    def contents(self) -> dict[str, int]:
        """It holds states of sequences that run, and of beginnings that others can share."""
        return {"recurrent state": self.pass_bytes, "state snapshots": self.snapshots * self.cell_bytes}

    def view(self, memory: torch.Tensor) -> LayerState:
        """The state in the memory of one layer, uint8 [bytes]."""
        return self.parts.view(memory[: self.layer_bytes].view(-1, self.cell_bytes))

    def cached_cells(self, pieces: Sequence[CachedPiece]) -> list[Copy]:
        """The slots that the sequences of a pass begin with, in ascending order; neighbours travel in one copy."""
        return runs({piece.state_read for piece in pieces} - {-1}, self.cell_bytes)

    def new_cells(self, pieces: Sequence[CachedPiece]) -> list[Copy]:
        """The slots that a pass writes, whole."""
        return runs({slot for piece in pieces for slot in _written(piece)}, self.cell_bytes)

    def holds(self, piece: CachedPiece, cell: int) -> bool:
        """Whether the piece begins with the state in this slot, or leaves its own there."""
        return cell == piece.state_read or cell in _written(piece)


@dataclass(frozen=True, slots=True)
class StateRoom:
    """How many requests recurrent states have room for, and how many snapshots, and what all layers take for it."""

    requests: int
    snapshots: int
    nbytes: int

    @classmethod
    def of(cls, layouts: Iterable[CellLayout]) -> Self | None:
        """That of these layers; None where none is recurrent."""
        found = [layout for layout in layouts if isinstance(layout, StateLayout)]
        nbytes = sum(layout.layer_bytes for layout in found)
        return cls(found[0].requests, found[0].snapshots, nbytes) if found else None

    def __str__(self) -> str:
        each = (self.requests, "request"), (self.snapshots, "snapshot")
        said = " and ".join(f"{count} {one}{'' if count == 1 else 's'}" for count, one in each)
        return f"{said}, {human_bytes(self.nbytes)}"


def _written(piece: CachedPiece) -> Iterator[int]:
    yield piece.state_write
    for _, slot in piece.snapshots:
        yield slot
