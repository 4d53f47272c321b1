"""How many rows each kernel gets."""

import itertools

import pytest
import torch

from pipeline.devices.cpu import CpuDevice
from pipeline.generation.micro_batches import micro_batches
from pipeline.models.row_blocks import MOST_ROWS, RowBlocks


@pytest.mark.parametrize("size", [32, 256])
def test_with_batch_invariant_every_kernel_gets_blocks_of_one_size(size: int) -> None:
    blocks = RowBlocks.of(size, 2, batch_invariant=True)
    for tokens, most in itertools.product((1, 2, size - 1, size, size + 1, 3 * size, 1000), (1, 2, 3)):
        cuts = [(block.begin, block.end) for part in micro_batches(tokens, most, blocks) for block in part.blocks]
        assert cuts == [(begin, begin + size) for begin in range(0, tokens, size)]
        assert len(blocks.fill(torch.ones(tokens, 3))) == cuts[-1][1]


@pytest.mark.parametrize("tokens", [MOST_ROWS, MOST_ROWS + 1, 3 * MOST_ROWS - 1, 4 * MOST_ROWS])
def test_long_passes_are_computed_in_turns_of_about_the_same_length(tokens: int) -> None:
    blocks = RowBlocks.of(32, 2, batch_invariant=False)
    cuts = blocks.cuts(5, 5 + tokens)
    assert [begin for begin, _ in cuts] == [5, *(end for _, end in cuts[:-1])]
    assert cuts[-1][1] == 5 + tokens
    sizes = {end - begin for begin, end in cuts}
    assert max(sizes) <= blocks.most_at_once(tokens) == MOST_ROWS
    assert max(sizes) - min(sizes) <= 1


def test_without_it_a_lone_row_gets_one_beside_it_where_one_dnn_multiplies() -> None:
    blocks = RowBlocks.of(32, CpuDevice().least_rows(torch.bfloat16), batch_invariant=False)
    assert torch.equal(blocks.fill(torch.ones(1, 3)), torch.tensor([[1.0, 1, 1], [0, 0, 0]]))
    assert RowBlocks.of(256, 1, batch_invariant=False) == RowBlocks()
    for tokens, most in itertools.product((1, 2, 3, 4, 5, 9, 64), (1, 2, 3)):
        parts = micro_batches(tokens, most, blocks)
        cuts = [(block.begin, block.end) for part in parts for block in part.blocks]
        assert len(cuts) == len(parts) == min(most, max(1, tokens // 2))
        assert [begin for begin, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
        assert cuts[-1][1] == max(tokens, 2)
        assert all(end - begin >= 2 for begin, end in cuts)
