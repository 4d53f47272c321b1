"""Attention against the formula written out, one token and one head at a time."""

from typing import Any

import pytest
import torch
from support.attention_kinds import attention as attention_of
from support.kv_blocks import POSITIONS, empty_blocks, rows_of

from pipeline.models.attention import LayerKV, attend
from pipeline.models.formula_attention import needs_formula
from pipeline.models.layers import Attention
from pipeline.models.pass_attention import attend_all
from pipeline.models.pass_rows import Rows, SequenceRows
from pipeline.models.rotary import Rotary

HEAD_DIM = 6


def by_formula(
    q_TNH: torch.Tensor,
    keys_SKH: torch.Tensor,
    values_SKH: torch.Tensor,
    start: int,
    kind: Attention,
    sinks_N: torch.Tensor | None = None,
) -> torch.Tensor:
    tokens, heads, _ = q_TNH.shape
    shared = heads // keys_SKH.shape[1]
    rows = []
    for token in range(tokens):
        end = start + token + 1
        first = max(0, 0 if kind.window is None else end - kind.window)
        first = max(first, 0 if kind.chunk is None else (end - 1) - (end - 1) % kind.chunk)
        for head in range(heads):
            keys_SH = keys_SKH[first:end, head // shared]
            scores_S = keys_SH @ q_TNH[token, head] * kind.scale
            if kind.softcap is not None:
                scores_S = kind.softcap * torch.tanh(scores_S / kind.softcap)
            if sinks_N is not None:
                scores_S = torch.cat((scores_S, sinks_N[head].view(1)))
            rows.append(scores_S.softmax(0)[: end - first] @ values_SKH[first:end, head // shared])
    return torch.cat(rows).view(tokens, -1)


@pytest.mark.parametrize("prompt_tokens", [0, 5, 100])
@pytest.mark.parametrize("window", [None, 1, 3, 5, 100])
@pytest.mark.parametrize(("start", "tokens"), [(0, 1), (0, 4), (4, 1), (4, 3), (9, 1), (2, 8), (30, 37)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_attention_is_the_formula(
    heads: int, kv_heads: int, start: int, tokens: int, window: int | None, prompt_tokens: int
) -> None:
    assert_is_the_formula(attention_of(heads, kv_heads, HEAD_DIM, window=window), start, tokens, prompt_tokens)


UNUSUAL: dict[str, dict[str, Any]] = {
    "scale": {"scale": 0.9},
    "scale and window": {"scale": 0.9, "window": 9},
    "chunk": {"chunk": 7},
    "long chunk": {"chunk": 32},
    "chunk and window": {"chunk": 20, "window": 6},
    "softcap": {"softcap": 1.5},
    "softcap and window": {"softcap": 1.5, "window": 5},
    "softcap and chunk": {"softcap": 0.5, "chunk": 18},
    "sinks": {"sinks": True},
    "sinks and window": {"sinks": True, "window": 20, "scale": 0.7},
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_attention_is_the_formula(name: str) -> None:
    for kind in (attention_of(4, 2, HEAD_DIM, **UNUSUAL[name]), attention_of(3, 1, HEAD_DIM, **UNUSUAL[name])):
        for start, tokens, prompt_tokens in ((0, 4, 100), (4, 1, 0), (2, 18, 9), (30, 37, 60)):
            assert_is_the_formula(kind, start, tokens, prompt_tokens)


def assert_is_the_formula(kind: Attention, start: int, tokens: int, prompt_tokens: int) -> None:
    torch.manual_seed(start * 100 + tokens)
    end, dtype = start + tokens, torch.float32 if needs_formula(kind) else torch.float64
    kv, blocks_B = empty_blocks(end + 3, kind.kv_heads, HEAD_DIM, dtype)
    keys_SKH, values_SKH = torch.randn(2, end, kind.kv_heads, HEAD_DIM, dtype=dtype)
    kv.write(rows_of(blocks_B, 0, end), keys_SKH, values_SKH)
    q_TNH = torch.randn(tokens, kind.heads, HEAD_DIM, dtype=dtype)
    sinks_N = torch.randn(kind.heads, dtype=dtype) if kind.sinks else None
    mixed_TA = attend(q_TNH, kv, blocks_B, start, prompt_tokens, kind, sinks_N)
    assert mixed_TA.shape == (tokens, kind.heads * HEAD_DIM)
    torch.testing.assert_close(mixed_TA, by_formula(q_TNH, keys_SKH, values_SKH, start, kind, sinks_N))


def test_each_sequence_of_a_pass_attends_to_its_own_blocks() -> None:
    """Three sequences share a pass, at other positions and with other numbers of tokens."""
    torch.manual_seed(7)
    memory, heads = torch.full((9, 2, POSITIONS, 2, HEAD_DIM), torch.nan, dtype=torch.float64), 4
    kv, sequences, expected, q = LayerKV(memory), [], [], []
    for table, start, tokens in (([4, 0], 5, 1), ([8, 1, 6], 8, 3), ([2], 0, 2)):
        blocks_B, end = torch.tensor(table), start + tokens
        keys_SKH, values_SKH = torch.randn(2, end, 2, HEAD_DIM, dtype=torch.float64)
        kv.write(rows_of(blocks_B, 0, end), keys_SKH, values_SKH)
        q.append(torch.randn(tokens, heads, HEAD_DIM, dtype=torch.float64))
        begin = sum(map(len, q[:-1]))
        sequences.append(SequenceRows(begin, begin + tokens, start, 8, blocks_B))
        expected.append(by_formula(q[-1], keys_SKH, values_SKH, start, attention_of(heads, 2, HEAD_DIM)))
    nothing_TKH, still = (
        torch.zeros_like(torch.cat(q)[:, :2]),
        Rotary(torch.ones(6, 1, HEAD_DIM), torch.zeros(6, 1, HEAD_DIM)),
    )
    rows = Rows(torch.zeros(6, 2, dtype=torch.int64), torch.zeros(0), 0, 0, 0, 1, 1, lambda: sequences)
    mixed_TA = attend_all(torch.cat(q), nothing_TKH, nothing_TKH, still, kv, rows, attention_of(heads, 2, HEAD_DIM))
    torch.testing.assert_close(mixed_TA, torch.cat(expected))


@pytest.mark.parametrize("name", ["plain", "window", *UNUSUAL])
def test_the_bits_of_a_token_do_not_depend_on_the_rows_that_lie_before_it(name: str) -> None:
    """Three heads of 22 channels have 264 bytes in fp32, no multiple of 16, by which kernels round."""
    torch.manual_seed(3)
    kv, blocks_B = empty_blocks(40, 1, 22, torch.float32)
    kv.write(rows_of(blocks_B, 0, 40), *torch.randn(2, 40, 1, 22))
    q_TNH = torch.randn(40, 3, 22)
    kind = attention_of(3, 1, 22, **{"plain": {}, "window": {"window": 9}, **UNUSUAL}[name])
    sinks_N = torch.randn(3) if kind.sinks else None
    whole_TA = attend(q_TNH, kv, blocks_B, 0, 30, kind, sinks_N)
    for start in (0, 1, 5, 16, 23, 35):
        for before in range(4):
            rows = torch.cat((torch.zeros(before, 3, 22), q_TNH[start:]))[before:]
            assert torch.equal(attend(rows, kv, blocks_B, start, 30, kind, sinks_N), whole_TA[start:])
