"""Attention on a GPU: right for every cut of a prompt, and not slower the first time that a length is seen."""

import statistics
import time

import pytest
import torch
from support.attention_kinds import attention

from pipeline.models.attention import LayerKV, attend

pytestmark = pytest.mark.cuda
BLOCK, BLOCKS, HEADS, HEAD_DIM = 16, 40, 8, 64


def made(kv_heads: int, dtype: torch.dtype) -> tuple[torch.Tensor, LayerKV, torch.Tensor]:
    """Queries of all positions, all keys and values, and the table of their blocks, which do not lie in order."""
    generator = torch.Generator().manual_seed(kv_heads)
    memory = torch.randn(BLOCKS, 2, BLOCK, kv_heads, HEAD_DIM, generator=generator)
    queries = torch.randn(BLOCKS * BLOCK, HEADS, HEAD_DIM, generator=generator)
    table = torch.randperm(BLOCKS, generator=generator)
    return queries.to("cuda", dtype), LayerKV(memory.to("cuda", dtype)), table.cuda()


def expected(q_TNH: torch.Tensor, kv: LayerKV, table: torch.Tensor, start: int, window: int | None) -> torch.Tensor:
    """The definition, in fp64 on the host."""
    end = start + len(q_TNH)
    keys, values = (x.double().cpu().repeat_interleave(HEADS // x.shape[1], 1) for x in kv.read(table, 0, end))
    scores = torch.einsum("tnh,snh->nts", q_TNH.double().cpu(), keys) / HEAD_DIM**0.5
    ahead = torch.arange(end) - torch.arange(start, end).unsqueeze(1)
    scores.masked_fill_((ahead > 0) | (ahead <= -(window or end + 1)), -torch.inf)
    return torch.einsum("nts,snh->tnh", scores.softmax(-1), values).flatten(1)


@pytest.mark.parametrize("prompt_tokens", [0, 110, 640])
@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("kv_heads", [2, HEADS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 4e-3), (torch.float32, 1e-3)])
@pytest.mark.parametrize(("start", "tokens"), [(0, 1), (0, 37), (100, 1), (100, 37), (511, 2)])
def test_every_cut_of_a_prompt_is_right(
    start: int,
    tokens: int,
    dtype: torch.dtype,
    tolerance: float,
    kv_heads: int,
    window: int | None,
    prompt_tokens: int,
) -> None:
    queries, kv, table = made(kv_heads, dtype)
    q_TNH = queries[start : start + tokens]
    with torch.inference_mode():
        have = (
            attend(q_TNH, kv, table, start, prompt_tokens, attention(HEADS, kv_heads, HEAD_DIM, window=window))
            .double()
            .cpu()
        )
    torch.testing.assert_close(have, expected(q_TNH, kv, table, start, window), atol=tolerance, rtol=tolerance)


def test_a_new_length_takes_no_longer_than_one_seen_before() -> None:
    """One token more a pass is how every answer grows: planning each length anew took 50 ms a token."""
    queries, kv, table = made(2, torch.bfloat16)
    kind = attention(HEADS, 2, HEAD_DIM)
    attend(queries[:1], kv, table, 0, 0, kind)
    torch.cuda.synchronize()

    def seconds(start: int) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            attend(queries[start : start + 1], kv, table, start, 0, kind)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    first, again = ([seconds(start) for start in range(300, 340)] for _ in range(2))
    assert statistics.median(first) < 0.01
    assert statistics.median(first) < 5 * statistics.median(again)
