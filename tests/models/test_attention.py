"""Attention against the formula written out, one token and one head at a time."""

import math

import pytest
import torch

from pipeline.models.attention import LayerKV, attend

HEAD_DIM = 6


def by_formula(q_TNH: torch.Tensor, kv: LayerKV, start: int, window: int | None) -> torch.Tensor:
    tokens, heads, _ = q_TNH.shape
    shared = heads // kv.keys.shape[1]
    rows = []
    for token in range(tokens):
        end = start + token + 1
        first = 0 if window is None else max(0, end - window)
        for head in range(heads):
            keys_SH = kv.keys[first:end, head // shared]
            scores_S = keys_SH @ q_TNH[token, head] / math.sqrt(HEAD_DIM)
            rows.append(scores_S.softmax(0) @ kv.values[first:end, head // shared])
    return torch.cat(rows).view(tokens, -1)


@pytest.mark.parametrize("window", [None, 1, 3, 5, 100])
@pytest.mark.parametrize(("start", "tokens"), [(0, 1), (0, 4), (4, 1), (4, 3), (9, 1), (2, 8)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_attention_is_the_formula(heads: int, kv_heads: int, start: int, tokens: int, window: int | None) -> None:
    torch.manual_seed(start * 100 + tokens)
    end = start + tokens
    keys, values = (torch.full((end + 3, kv_heads, HEAD_DIM), torch.nan, dtype=torch.float64) for _ in range(2))
    kv = LayerKV(keys, values)
    kv.keys[:end] = torch.randn(end, kv_heads, HEAD_DIM)
    kv.values[:end] = torch.randn(end, kv_heads, HEAD_DIM)
    q_TNH = torch.randn(tokens, heads, HEAD_DIM, dtype=torch.float64)
    mixed_TA = attend(q_TNH, kv, start, window)
    assert mixed_TA.shape == (tokens, heads * HEAD_DIM)
    torch.testing.assert_close(mixed_TA, by_formula(q_TNH, kv, start, window))
