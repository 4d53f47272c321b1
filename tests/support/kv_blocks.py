"""KV blocks of a single sequence, scattered over a layer's memory."""

import torch

from pipeline.models.attention import LayerKV
from pipeline.models.pass_rows import Rows, SequenceRows

POSITIONS = 4
"""Of a block: few, so that short sequences span several."""


def empty_blocks(tokens: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[LayerKV, torch.Tensor]:
    """Room for a sequence, and its block table in an odd order.

    NaN in every row that is not written yet: reading one too many would show in every number.
    """
    count = -(-tokens // POSITIONS)
    memory = torch.full((2 * count + 1, 2, POSITIONS, kv_heads, head_dim), torch.nan, dtype=dtype)
    return LayerKV(memory), torch.arange(1, 2 * count, 2).flip(0)


def rows_of(blocks_B: torch.Tensor, start: int, tokens: int, prompt_tokens: int | None = None) -> Rows:
    """A pass over nothing but `tokens` of that sequence, from position `start` on, all of its prompt unless said."""
    positions_T = torch.arange(start, start + tokens)
    numbers = torch.stack((positions_T, blocks_B[positions_T // POSITIONS]), 1)
    prompt_tokens = start + tokens if prompt_tokens is None else prompt_tokens
    sequence = SequenceRows(0, tokens, start, prompt_tokens, blocks_B)
    return Rows(numbers, blocks_B.unsqueeze(0), tokens, 0, 0, 1, 1, lambda: [sequence])
