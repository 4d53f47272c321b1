"""Where the keys and values of a layer lie in memory, and which bytes of them a pass moves. Arithmetic only.

A cell is a block. Memory of one layer: [B blocks, keys and values, P positions, K kv heads, H head dim], each block
padded to whole pages, so that it is one run of bytes for a copy and for a direct write. Where values are a part of the
keys, a block holds keys alone, and behind them what is kept to choose by: [P positions, channels]. Last comes what a
layer keeps beside all positions of a block together.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from actors.core.ports import Copy
from pipeline.groups.layout import merge_copies
from pipeline.models.attention import LayerKV
from pipeline.models.layers import Attention, first_seen
from pipeline.models.state_part import ALIGNMENT_BYTES, StatePart, part_views
from pipeline.state.blocks import BLOCK_TOKENS, blocks_for
from pipeline.state.cached import CachedPiece
from pipeline.state.cell_layout import runs
from pipeline.system.page_cache import BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The blocks of one layer, wherever they are. The last `value_dim` channels of keys are the values, unless it is
    None: then values are kept, too. To choose by, `index_dim` channels are kept of a position, and `beside` them parts
    of a whole block, which a pass needs of every block before it.
    """

    blocks: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    window: int | None = None
    chunk: int | None = None
    value_dim: int | None = None
    index_dim: int = 0
    beside: tuple[StatePart, ...] = ()

    @classmethod
    def of(cls, kind: Attention, blocks: int, dtype: torch.dtype) -> "KvLayout":
        """The layout of a layer with this attention."""
        value_dim, beside = None if kind.keeps_values else kind.value_dim, kind.beside(BLOCK_TOKENS, dtype)
        window = None if beside else kind.window
        return cls(blocks, kind.kv_heads, kind.head_dim, dtype, window, kind.chunk, value_dim, kind.index_dim, beside)

    @property
    def cell(self) -> str:
        """The name of a cell."""
        return "KV block"

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """What a block holds of one position: its keys, its values unless they are a part of them, and what is kept
        to choose by.
        """
        items = self.kv_heads * self.head_dim
        widths = [items] * (2 if self.value_dim is None else 1) + [self.index_dim] * bool(self.index_dim)
        return tuple(width * self.dtype.itemsize for width in widths)

    @property
    def cell_bytes(self) -> int:
        """The bytes from the beginning of one block to that of the next."""
        nbytes = self._beside_at + sum(part.nbytes for part in self.beside)
        return -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES

    @property
    def _beside_at(self) -> int:
        """Where what is kept of a whole block begins in it."""
        return -(-BLOCK_TOKENS * sum(self.row_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    @property
    def layer_bytes(self) -> int:
        """All blocks of one layer."""
        return self.blocks * self.cell_bytes

    @property
    def pass_bytes(self) -> int:
        """A pass can look at all blocks."""
        return self.layer_bytes

    @property
    def contents(self) -> dict[str, int]:
        """All blocks are alike."""
        return {"KV blocks": self.layer_bytes}

    def view(self, memory: torch.Tensor) -> LayerKV:
        """The blocks in the memory of one layer, uint8 [bytes]."""
        cells = memory[: self.layer_bytes].view(self.blocks, -1)
        padded = cells.view(self.dtype)
        shape = (2 if self.value_dim is None else 1, BLOCK_TOKENS, self.kv_heads, self.head_dim)
        items, index = math.prod(shape), BLOCK_TOKENS * self.index_dim
        keys_B2PKH = padded[:, :items].view(self.blocks, *shape)
        index_BPI = padded[:, items : items + index].view(self.blocks, BLOCK_TOKENS, -1) if index else None
        beside = part_views(self.beside, cells[:, self._beside_at :])
        return LayerKV(keys_B2PKH, self.value_dim, index_BPI, beside)

    def cached_cells(self, pieces: Sequence[CachedPiece]) -> list[Copy]:
        """The blocks that the sequences of a pass look back at, in ascending order; neighbours travel in one copy."""
        return runs({block for piece in pieces for block in self._cached(piece)}, self.cell_bytes)

    def new_cells(self, pieces: Sequence[CachedPiece]) -> list[Copy]:
        """The rows that the tokens of a pass write: in every block, keys and values apart where both are kept.

        With what is kept of whole blocks, these are written.
        """
        if self.beside:
            return runs({block for piece in pieces for block in _written(piece)}, self.cell_bytes)
        rows = (row for piece in pieces for row in self._rows(piece))
        return merge_copies(sorted(rows, key=lambda row: row.source_offset))

    def holds(self, piece: CachedPiece, cell: int) -> bool:
        """Whether the block is in the table of the piece's sequence."""
        return cell in piece.sequence.blocks

    def _cached(self, piece: CachedPiece) -> Sequence[int]:
        first = first_seen(piece.start, self.window, self.chunk)
        return piece.sequence.blocks[first // BLOCK_TOKENS : blocks_for(piece.start)]

    def _rows(self, piece: CachedPiece) -> Iterator[Copy]:
        position, end = piece.start, piece.start + len(piece.token_ids)
        while position < end:
            row = position % BLOCK_TOKENS
            count = min(BLOCK_TOKENS - row, end - position)
            first = piece.sequence.blocks[position // BLOCK_TOKENS] * self.cell_bytes
            for width in self.row_bytes:
                offset = first + row * width
                yield Copy(offset, offset, count * width)
                first += BLOCK_TOKENS * width
            position += count


def _written(piece: CachedPiece) -> Sequence[int]:
    """The blocks in which tokens of the piece lie."""
    return piece.sequence.blocks[piece.start // BLOCK_TOKENS : blocks_for(piece.start + len(piece.token_ids))]
