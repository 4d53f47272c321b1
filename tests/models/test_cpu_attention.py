"""Attention of answers by numba's kernel: the formula, as near to it as torch comes, and with the same bits always."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from support.attention_kinds import attention as attention_of
from support.attention_kinds import latent_attention

from pipeline.formats import cpu_compiled
from pipeline.models import pass_attention
from pipeline.models.attention import LayerKV, attend
from pipeline.models.layers import Attention
from pipeline.models.pass_attention import attend_all, is_compiled, scratch_bytes
from pipeline.models.pass_rows import PART, Rows, SequenceRows

cpu_attention = pytest.importorskip("pipeline.models.cpu_attention", reason="needs numba", exc_type=ImportError)
POSITIONS, CPU = 16, torch.device("cpu")
STARTS = (0, 7, PART - 1, PART, 700, 1000)
"""Positions of answers: of one part, on both sides of the end of one, and of several."""
KINDS = {
    "plain": attention_of(32, 4, 128),
    "groups of five": attention_of(10, 2, 48, scale=0.3),
    "two tiles of heads, and sinks": attention_of(32, 2, 16, sinks=True),
    "window": attention_of(4, 2, 64, window=300),
    "window of one": attention_of(2, 2, 32, window=1),
    "chunk": attention_of(3, 1, 80, chunk=200, sinks=True, window=150),
}


@pytest.fixture(autouse=True)
def every_kind_is_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small ones, too, on any CPU."""
    monkeypatch.setattr(pass_attention, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(cpu_compiled, "has_dots", lambda: True)
    pass_attention._compiled.cache_clear()
    yield
    pass_attention._compiled.cache_clear()


def filled(kind: Attention, spans: Sequence[tuple[int, int, int]]) -> tuple[LayerKV, list[SequenceRows], torch.Tensor]:
    """A sequence for each start, number of tokens, and tokens of the prompt, in scattered blocks, and queries.

    NaN where nothing is kept: reading one position too many would show.
    """
    torch.manual_seed(1)
    counts = [-(-(start + tokens) // POSITIONS) for start, tokens, _ in spans]
    shape = (2, POSITIONS, kind.kv_heads, kind.head_dim)
    memory = torch.full((sum(counts) + 1, *shape), torch.nan, dtype=torch.bfloat16)
    order, sequences, begin = torch.randperm(len(memory)).split([*counts, 1]), [], 0
    for (start, tokens, prompt_tokens), blocks_B in zip(spans, order[:-1], strict=True):
        kept = torch.randn(len(blocks_B), *shape).to(torch.bfloat16)
        kept[-1, :, (start + tokens - 1) % POSITIONS + 1 :] = torch.nan
        memory[blocks_B] = kept
        sequences.append(SequenceRows(begin, begin + tokens, start, prompt_tokens, blocks_B.clone()))
        begin += tokens
    return LayerKV(memory), sequences, torch.randn(begin, kind.heads, kind.head_dim).to(torch.bfloat16) * 2


def one_by_one(
    q_TNH: torch.Tensor, kv: LayerKV, sequences: Sequence[SequenceRows], kind: Attention, sinks_N: torch.Tensor | None
) -> torch.Tensor:
    """By torch."""
    each = [
        attend(q_TNH[one.begin : one.end], kv, one.blocks_B, one.start, one.prompt_tokens, kind, sinks_N)
        for one in sequences
    ]
    return torch.cat(each)


@pytest.mark.parametrize("name", KINDS)
def test_answers_are_as_near_to_the_formula_as_those_of_torch(name: str) -> None:
    kind = KINDS[name]
    kv, sequences, q_TNH = filled(kind, [(start, 1, 0) for start in STARTS])
    sinks_N = torch.randn(kind.heads).to(torch.bfloat16) if kind.sinks else None
    exact_TA = one_by_one(q_TNH.double(), LayerKV(kv.memory.double()), sequences, kind, sinks_N).double()
    of_torch_TA = one_by_one(q_TNH, kv, sequences, kind, sinks_N)
    mixed_TA = cpu_attention.attend_answers(q_TNH, kv.memory, sequences, kind, sinks_N)
    assert mixed_TA.dtype is torch.bfloat16
    error, of_torch = ((one.double() - exact_TA).abs().mean() for one in (mixed_TA, of_torch_TA))
    assert error <= of_torch * 1.01
    torch.testing.assert_close(mixed_TA.double(), exact_TA, rtol=2**-8, atol=1e-5)  # rounded once, to the nearest


@pytest.mark.parametrize("name", ["plain", "chunk"])
def test_the_bits_of_an_answer_depend_on_no_other_and_on_no_number_of_threads(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, threads = KINDS[name], torch.get_num_threads()
    monkeypatch.setattr(cpu_attention, "THREAD_NUMBERS", 1)
    kv, sequences, q_TNH = filled(kind, [(start, 3, 0) for start in STARTS])
    sinks_N = torch.randn(kind.heads) if kind.sinks else None
    try:
        torch.set_num_threads(1)
        alone = [cpu_attention.attend_answers(q_TNH, kv.memory, [one], kind, sinks_N) for one in sequences]
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            monkeypatch.setattr(cpu_attention, "CPU_ANSWERS_AT_ONCE", 5 if count == 3 else 32)
            together_TA = cpu_attention.attend_answers(q_TNH, kv.memory, sequences[::-1], kind, sinks_N)
            for one, alone_TA in zip(sequences, alone, strict=True):
                assert torch.equal(together_TA[one.begin : one.end], alone_TA[one.begin : one.end])
    finally:
        torch.set_num_threads(threads)


def attend_by(kind: Attention, spans: Sequence[tuple[int, int, int]], ended: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a pass and torch give; one of its sequences has ended."""
    kv, sequences, q_TNH = filled(kind, spans)
    last = sequences[ended]
    sequences[ended] = SequenceRows(last.begin, last.end, last.start, last.prompt_tokens, last.blocks_B, lambda: True)
    nothing = q_TNH[:, : kind.kv_heads]
    rows = Rows(torch.zeros(len(q_TNH), 2, dtype=torch.int64), torch.zeros(0), 0, 0, 0, 1, 1, lambda: sequences)
    mixed_TA = attend_all(q_TNH, nothing, nothing, None, kv, rows, kind)
    return mixed_TA, one_by_one(q_TNH, kv, sequences, kind, None)


def test_prompts_of_the_same_pass_have_the_bits_that_torch_gives_them() -> None:
    """Tokens of an answer that are computed anew stand behind their prompt; what has ended gets zeros."""
    mixed_TA, of_torch_TA = attend_by(KINDS["plain"], [(30, 4, 100), (40, 1, 0), (15, 30, 20), (9, 1, 0)], ended=3)
    prompts, answers = [*range(4), *range(5, 10)], [4, *range(10, 35)]
    assert torch.equal(mixed_TA[prompts], of_torch_TA[prompts])
    assert not torch.equal(mixed_TA[answers], of_torch_TA[answers])
    torch.testing.assert_close(mixed_TA[answers], of_torch_TA[answers], rtol=0.02, atol=0.02)
    assert not mixed_TA[35:].any()


def test_rows_of_prompts_are_left_to_torch() -> None:
    kind = KINDS["plain"]
    kv, sequences, q_TNH = filled(kind, [(15, 30, 20)])
    mixed_TA = cpu_attention.attend_answers(q_TNH, kv.memory, sequences, kind, None)
    assert not mixed_TA[:5].any()
    assert mixed_TA[5:].any(1).all()


def test_without_numba_torch_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_compiled, "kernels", lambda: None)
    mixed_TA, of_torch_TA = attend_by(KINDS["plain"], [(30, 1, 0), (40, 1, 0), (9, 1, 0)], ended=2)
    assert torch.equal(mixed_TA[:2], of_torch_TA[:2])


def test_which_kinds_are_compiled_follows_from_the_kind_and_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    plain: dict[str, Any] = {"heads": 8, "kv_heads": 2, "head_dim": 128}
    monkeypatch.setattr(pass_attention, "LEAST_CHANNELS", 1024)
    assert is_compiled(attention_of(**plain))
    assert is_compiled(attention_of(**plain, sinks=True, window=9, chunk=8, scale=0.5))
    assert not is_compiled(attention_of(**plain, softcap=30.0))
    assert not is_compiled(attention_of(**{**plain, "heads": 6}))
    assert not is_compiled(attention_of(8, 2, 136))
    assert not is_compiled(latent_attention(16, 128, 16))
    assert pass_attention._compiled(CPU, torch.float32, attention_of(**plain)) is None
    monkeypatch.setattr(cpu_compiled, "has_dots", lambda: False)
    assert not is_compiled(attention_of(**plain))


def test_memory_for_parts_is_counted() -> None:
    """Of many rows of wide groups more than a copy of the keys and values of one."""
    kind, context = attention_of(64, 1, 64), 5 * PART
    tile = cpu_attention.HeadTile.of(kind)
    assert (tile.heads, tile.filled, tile.vectors) == (8, 64, 2)
    taken = 32 * 64 * (5 * (64 + 2) + 2 * 64) * 4
    assert taken <= scratch_bytes(kind, CPU, torch.bfloat16, 100, context)
    assert scratch_bytes(kind, CPU, torch.bfloat16, 8, context) < taken
    assert scratch_bytes(kind, CPU, torch.float32, 100, context) < taken
