"""How many rows each kernel gets."""

import itertools

import pytest
import torch

from pipeline.generation.generation_pass import micro_batches
from pipeline.models.row_blocks import CPU_ROWS, GPU_ROWS, RowBlocks


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_with_batch_invariant_every_kernel_gets_blocks_of_one_size(dtype: torch.dtype, gpu: bool) -> None:
    blocks = RowBlocks.of(dtype, gpu=gpu, batch_invariant=True)
    size = GPU_ROWS if gpu else CPU_ROWS
    for tokens, most in itertools.product((1, 2, size - 1, size, size + 1, 3 * size, 1000), (1, 2, 3)):
        cuts = [(block.begin, block.end) for part in micro_batches(tokens, most, blocks) for block in part.blocks]
        assert cuts == [(begin, begin + size) for begin in range(0, tokens, size)]
        assert len(blocks.fill(torch.ones(tokens, 3))) == cuts[-1][1]


def test_without_it_a_lone_row_gets_one_beside_it_where_one_dnn_multiplies() -> None:
    blocks = RowBlocks.of(torch.bfloat16, gpu=False, batch_invariant=False)
    assert torch.equal(blocks.fill(torch.ones(1, 3)), torch.tensor([[1.0, 1, 1], [0, 0, 0]]))
    assert RowBlocks.of(torch.float32, gpu=True, batch_invariant=False) == RowBlocks()
    for tokens, most in itertools.product((1, 2, 3, 4, 5, 9, 64), (1, 2, 3)):
        parts = micro_batches(tokens, most, blocks)
        cuts = [(block.begin, block.end) for part in parts for block in part.blocks]
        assert len(cuts) == len(parts) == min(most, max(1, tokens // 2))
        assert [begin for begin, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
        assert cuts[-1][1] == max(tokens, 2)
        assert all(end - begin >= 2 for begin, end in cuts)
