"""Which bytes of a layer's KV blocks a pass moves: all that it looks back at, and each new row once."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.core.ports import Copy
from pipeline.generation.batching import Piece
from pipeline.groups.layout import merge_copies
from pipeline.state.blocks import BLOCK_TOKENS, blocks_for
from pipeline.state.cell_layout import cells_of, runs
from pipeline.state.kv_layout import KvLayout
from pipeline.system.page_cache import BLOCK_BYTES

BLOCKS = 40


@dataclass
class Table:
    """All that the layout asks of a sequence."""

    blocks: list[int] = field(default_factory=list)


@st.composite
def layouts(draw: st.DrawFn) -> KvLayout:
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    window, chunk = (draw(st.none() | st.integers(1, 70)) for _ in range(2))
    heads, head_dim, value_dim = (
        draw(st.integers(1, 8)),
        draw(st.sampled_from([2, 22, 64])),
        draw(st.none() | st.just(1)),
    )
    return KvLayout(BLOCKS, heads, head_dim, dtype, window, chunk, value_dim, draw(st.sampled_from([0, 0, 6])))


@st.composite
def passes(draw: st.DrawFn) -> list[Piece]:
    """Some sequences with tables of their own; the first ones begin with full blocks that they share."""
    free = draw(st.permutations(range(BLOCKS)))
    shared, free = free[:2], free[2:]
    pieces = []
    for index in range(draw(st.integers(1, 5))):
        table = [*(shared if index < draw(st.integers(0, 3)) else ()), *free[index * 7 : index * 7 + 5]]
        least = (len(table) - 5) * BLOCK_TOKENS
        start = draw(st.integers(least, len(table) * BLOCK_TOKENS - 1))
        count = draw(st.integers(1, len(table) * BLOCK_TOKENS - start))
        pieces.append(Piece(Table(table), start, (7,) * count, 1))  # type: ignore[arg-type]
    return pieces


def rows_of(layout: KvLayout, piece: Piece, first: int, end: int) -> set[tuple[int, int]]:
    """The places of keys and values of positions [first, end)."""
    found = set()
    for position in range(first, end):
        block = piece.sequence.blocks[position // BLOCK_TOKENS] * layout.cell_bytes
        for row in layout.row_bytes:
            begin = block + position % BLOCK_TOKENS * row
            found.add((begin, begin + row))
            block += BLOCK_TOKENS * row
    return found


def bytes_of(copies: list[Copy]) -> list[int]:
    """Every byte that is moved, in the order in which it is."""
    return [byte for copy in copies for byte in range(copy.source_offset, copy.source_offset + copy.length)]


def small(layout: KvLayout) -> KvLayout:
    return KvLayout(layout.blocks, 1, 2, layout.dtype, layout.window, layout.chunk, layout.value_dim, layout.index_dim)


@given(layouts())
def test_blocks_are_padded_to_pages_and_seen_without_the_padding(layout: KvLayout) -> None:
    assert layout.cell_bytes % BLOCK_BYTES == 0
    assert 0 <= layout.cell_bytes - BLOCK_TOKENS * sum(layout.row_bytes) < BLOCK_BYTES
    memory = torch.zeros(layout.layer_bytes + 64, dtype=torch.uint8)
    view, last = layout.view(memory), len(layout.row_bytes) - 1
    for block, half, row in ((0, 0, 0), (3, last, 5), (BLOCKS - 1, last, BLOCK_TOKENS - 1)):
        width = layout.row_bytes[half]
        offset = block * layout.cell_bytes + BLOCK_TOKENS * sum(layout.row_bytes[:half]) + row * width
        memory[offset : offset + width] = 1
        is_index = view.index is not None and half == last
        seen = view.index[block, row] if is_index else view.memory[block, half, row]
        assert bool((seen != 0).all())
        memory[offset : offset + width] = 0


@given(layouts(), passes())
def test_every_new_row_goes_home_once_and_nothing_else(layout: KvLayout, pieces: list[Piece]) -> None:
    layout = small(layout)
    rows = layout.new_cells(pieces)
    need = {place for piece in pieces for place in rows_of(layout, piece, piece.start, end_of(piece))}
    moved = bytes_of(rows)
    assert moved == sorted(byte for begin, end in need for byte in range(begin, end))
    assert len(moved) == sum(len(piece.token_ids) for piece in pieces) * sum(layout.row_bytes)
    assert all(copy.source_offset == copy.target_offset for copy in rows)
    for before, after in pairwise(rows):
        assert before.source_offset + before.length < after.source_offset, "neighbours travel in one copy"
    written = {
        piece.sequence.blocks[position // BLOCK_TOKENS]
        for piece in pieces
        for position in range(piece.start, end_of(piece))
    }
    assert cells_of(rows, layout.cell_bytes) == sorted(written)


@given(layouts(), passes())
def test_all_that_is_looked_back_at_comes_in_whole_blocks(layout: KvLayout, pieces: list[Piece]) -> None:
    copies = layout.cached_cells(pieces)
    come = {
        offset // layout.cell_bytes
        for copy in copies
        for offset in range(copy.source_offset, copy.source_offset + copy.length, layout.cell_bytes)
    }
    assert all(copy.source_offset % layout.cell_bytes == copy.length % layout.cell_bytes == 0 for copy in copies)
    assert sum(copy.length for copy in copies) == len(come) * layout.cell_bytes, "each block once"
    need = set()
    for piece in pieces:
        first = 0 if layout.window is None else max(0, piece.start - layout.window + 1)
        if layout.chunk is not None:
            first = max(first, piece.start - piece.start % layout.chunk)
        need |= {piece.sequence.blocks[position // BLOCK_TOKENS] for position in range(first, piece.start)}
        if piece.start % BLOCK_TOKENS:
            need.add(piece.sequence.blocks[piece.start // BLOCK_TOKENS])  # written whole where it lives on the disk
    assert come == need


def end_of(piece: Piece) -> int:
    return piece.start + len(piece.token_ids)


@pytest.mark.parametrize(("start", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_a_block_comes_as_soon_as_it_holds_one_row(start: int, blocks: int) -> None:
    layout = KvLayout(BLOCKS, 1, 2, torch.float32)
    piece = Piece(Table([4, 3, 9]), start, (7,), True)  # type: ignore[arg-type]
    come = layout.cached_cells([piece])
    assert sum(copy.length for copy in come) == blocks * layout.cell_bytes == blocks_for(start) * layout.cell_bytes
    if blocks == 2:
        assert come == [Copy(3 * layout.cell_bytes, 3 * layout.cell_bytes, 2 * layout.cell_bytes)]


@given(st.sets(st.integers(0, 60)))
def test_runs_hold_the_same_blocks_in_the_fewest_copies(blocks: set[int]) -> None:
    copies = runs(blocks, BLOCK_BYTES)
    assert cells_of(copies, BLOCK_BYTES) == sorted(blocks)
    assert len(copies) == sum(block - 1 not in blocks for block in blocks)


def test_nothing_merges_to_nothing_and_gaps_stay() -> None:
    assert merge_copies([]) == []
    assert merge_copies([Copy(0, 0, 4), Copy(4, 4, 4), Copy(9, 9, 1)]) == [Copy(0, 0, 8), Copy(9, 9, 1)]
