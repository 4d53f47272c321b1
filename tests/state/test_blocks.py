"""Block tables: every block is in one table or free, whatever comes and goes."""

import time

from hypothesis import given
from hypothesis import strategies as st

from pipeline.state.blocks import BLOCK_TOKENS, BlockPool, blocks_for


def test_a_block_more_as_soon_as_one_is_full() -> None:
    assert [blocks_for(tokens) for tokens in (1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 10 * BLOCK_TOKENS)] == [1, 1, 2, 10]


def test_what_does_not_fit_takes_nothing() -> None:
    pool = BlockPool(3)
    table = pool.take(2 * BLOCK_TOKENS)
    assert table is not None
    assert pool.take(BLOCK_TOKENS + 1) is None
    assert (pool.used, pool.peak) == (2, 2)
    pool.give_back(table)
    assert pool.take(3 * BLOCK_TOKENS) is not None
    assert pool.peak == 3


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5 * BLOCK_TOKENS)), max_size=60), st.integers(1, 12))
def test_no_block_is_in_two_tables(moves: list[tuple[bool, int]], blocks: int) -> None:
    pool, tables = BlockPool(blocks), []
    for takes, tokens in moves:
        if takes and (table := pool.take(tokens)) is not None:
            assert len(table) == blocks_for(tokens)
            tables.append(table)
        elif not takes and tables:
            pool.give_back(tables.pop(tokens % len(tables)))
        held = [block for table in tables for block in table]
        assert len(set(held)) == len(held) == pool.used
        assert set(held) <= set(range(blocks))


def test_evicting_a_block_takes_as_long_among_many_as_among_few() -> None:
    blocks = 1 << 17
    pool = BlockPool(blocks)
    table = pool.take(blocks * BLOCK_TOKENS) or []
    for block in table:
        pool.register(block, block.to_bytes(4))
    pool.give_back(table)
    began = time.process_time()
    assert pool.take(blocks * BLOCK_TOKENS) == table[::-1], "the last of a table first"
    assert time.process_time() - began < 1
