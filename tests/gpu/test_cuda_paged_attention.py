"""Attention of all rows of a pass at once: right, with the same bits in any company, in as many launches."""

import asyncio
import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.attention_kinds import attention as attention_of
from torch.profiler import ProfilerActivity, profile

from pipeline import Model
from pipeline.devices.cuda import CudaDevice
from pipeline.generation.batching import Piece
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.sequence import RunningSequence
from pipeline.models import pass_attention
from pipeline.models.attention import LayerKV
from pipeline.models.layers import Attention
from pipeline.models.pass_attention import attend_all
from pipeline.models.pass_rows import Rows
from pipeline.models.ropes import ProportionalScaling, Rope
from pipeline.models.rotary import Rotary, rotate, rotate_queries

pytestmark = pytest.mark.cuda
BLOCKS, PADDED = 1300, 7
PIECES = [
    (0, 300, 300),
    (5, 1, 6),
    (100, 1, 30),
    (15, 200, 1000),
    (170, 90, 200),
    (700, 50, 600),
    (9000, 1, 5),
    (5000, 40, 6000),
]
"""Position, tokens in the pass, and tokens of the prompt: prompts, answers, the end of a prompt with its answer, and a
short piece of a prompt, of whose positions each part has programs of its own where it is alone."""
CASES = [
    ("bfloat16", 3e-2, 2, 4, 128, None),
    ("bfloat16", 3e-2, 2, 4, 128, 200),
    ("bfloat16", 3e-2, 1, 8, 6, None),
    ("bfloat16", 3e-2, 2, 7, 112, 1),
    ("bfloat16", 3e-2, 2, 1, 256, None),
    ("float16", 5e-3, 4, 1, 64, 50),
    ("float32", 2e-5, 2, 4, 64, None),
    ("float32", 2e-5, 1, 3, 80, 50),
]
"""Dtype, tolerance, KV heads, query heads of each, channels, window. Each case compiles kernels of its own."""
TURNS = Rope(theta=1e4, channels=64)
KINDS = [
    ("bfloat16", 3e-2, 2, 6, 256, {"rope": replace(TURNS), "scale": 0.04}),
    (
        "bfloat16",
        3e-2,
        2,
        4,
        512,
        {"rope": Rope(theta=1e6, channels=512, scaling=ProportionalScaling(share=0.25, factor=1.0))},
    ),
    ("bfloat16", 3e-2, 2, 4, 128, {"rope": replace(TURNS, interleaved=True), "softcap": 2.0, "window": 300}),
    ("float16", 5e-3, 4, 2, 96, {"rope": None, "sinks": True}),
    ("float16", 5e-3, 2, 4, 64, {"rope": replace(TURNS, query_growth=(0.1, 500)), "sinks": True, "window": 128}),
    ("float32", 2e-5, 2, 3, 80, {"rope": replace(TURNS, query_growth=(0.1, 500)), "chunk": 700}),
    ("float32", 2e-5, 1, 4, 64, {"softcap": 2.0, "scale": 0.3, "chunk": 64, "sinks": True}),
]
"""The same with what a kind has beside that."""


@dataclass
class Pass:
    """What each request has, and the rows of all of them."""

    device: CudaDevice
    kv: LayerKV
    pieces: list[Piece]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    def rows(self, pieces: Sequence[Piece], count: int) -> Rows:
        inputs = PassInputs(self.device, count, len(pieces), 9100)
        asyncio.run(_wait(inputs.send(pieces, [(0, count)])))
        return inputs.rows(0, count)


async def _wait(event: object) -> None:
    await event.wait()  # type: ignore[attr-defined]


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    opened = CudaDevice()
    yield opened
    asyncio.run(opened.aclose())


def made(device: CudaDevice, kind: Attention, dtype: torch.dtype) -> Pass:
    """Blocks that do not lie in order, each with a gap behind it; NaN wherever a row must not look."""
    kv_heads, head_dim = kind.kv_heads, kind.head_dim
    items = 2 * 16 * kv_heads * head_dim
    memory = torch.full((BLOCKS, items + 64), torch.nan, device="cuda", dtype=dtype)
    kv = LayerKV(memory[:, :items].view(BLOCKS, 2, 16, kv_heads, head_dim))
    free, pieces, keys, values = torch.randperm(BLOCKS).tolist(), [], [], []
    for start, tokens, prompt_tokens in PIECES:
        sequence = RunningSequence(array("i", [1] * prompt_tokens), SamplingParameters(), frozenset(), None, 8)
        sequence.blocks = [free.pop() for _ in range(-(-(start + tokens) // 16))]
        pieces.append(Piece(sequence, start, (1,) * tokens, 1))
        for index, rows in enumerate((keys, values)):
            rows.append(torch.randn(start + tokens, kv_heads, head_dim, device="cuda").to(dtype))
            seen = torch.arange(kind.first_seen(start), start, device="cuda")
            table = torch.tensor(sequence.blocks, device="cuda")
            kv.memory[:, index].index_put_((table[seen // 16], seen % 16), rows[-1][seen])
    return Pass(device, kv, pieces, keys, values)


def by_formula(
    q_TNH: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kind: Attention, sinks_N: torch.Tensor | None
) -> torch.Tensor:
    shared = q_TNH.shape[1] // keys.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (q_TNH, keys, values))
    end = len(keys)
    scores = q @ k.repeat_interleave(shared, 0).transpose(1, 2) * kind.scale
    if kind.softcap is not None:
        scores = (scores / kind.softcap).tanh() * kind.softcap
    asking = range(end - len(q_TNH), end)
    first_T1 = torch.tensor([[kind.first_seen(position)] for position in asking], device="cuda")
    position_S, last_T1 = torch.arange(end, device="cuda"), torch.tensor(asking, device="cuda").unsqueeze(1)
    scores.masked_fill_((position_S > last_T1) | (position_S < first_T1), -torch.inf)
    if sinks_N is not None:
        scores = torch.cat((scores, sinks_N.double().view(-1, 1, 1).expand(-1, len(q_TNH), 1)), -1)
    return (scores.softmax(-1)[..., :end] @ v.repeat_interleave(shared, 0)).transpose(0, 1).flatten(1)


@pytest.mark.parametrize(
    ("name", "tolerance", "kv_heads", "group", "head_dim", "changes"),
    [*((*case[:-1], {"window": case[-1]}) for case in CASES), *KINDS],
)
@torch.no_grad()
def test_a_mixed_pass_is_right_and_each_request_has_the_same_bits_alone(
    name: str,
    tolerance: float,
    kv_heads: int,
    group: int,
    head_dim: int,
    changes: dict[str, Any],
    device: CudaDevice,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(1)
    dtype: torch.dtype = getattr(torch, name)
    kind = attention_of(group * kv_heads, kv_heads, head_dim, **changes)
    made_ = made(device, kind, dtype)
    tokens = sum(len(piece.token_ids) for piece in made_.pieces)
    count = tokens + PADDED
    raw = torch.randn(count, kind.heads, head_dim, device="cuda").to(dtype)
    turn = None if kind.rope is None else random_turn(kind.rope, count)
    new_keys = torch.randn(count, kv_heads, head_dim, device="cuda").to(dtype)
    new_values = torch.randn_like(new_keys)
    sinks = torch.randn(kind.heads, device="cuda").to(dtype) if kind.sinks else None
    mixed = attend_all(raw.clone(), new_keys, new_values, turn, made_.kv, made_.rows(made_.pieces, count), kind, sinks)
    assert not caplog.records, "the kernels were used"
    assert (mixed[tokens:] == 0).all()
    turned, turned_keys, end = (rotate_queries(raw, turn), rotate(new_keys, turn), 0) if turn else (raw, new_keys, 0)
    for piece, keys, values in zip(made_.pieces, made_.keys, made_.values, strict=True):
        begin, end = end, end + len(piece.token_ids)
        keys[piece.start :], values[piece.start :] = turned_keys[begin:end], new_values[begin:end]
        positions = torch.arange(piece.start, len(keys), device="cuda")
        written = made_.kv.memory[
            torch.tensor(piece.sequence.blocks, device="cuda")[positions // 16], :, positions % 16
        ]
        assert torch.equal(written, torch.stack((turned_keys[begin:end], new_values[begin:end]), 1)), piece.start
        expected = by_formula(turned[begin:end], keys, values, kind, sinks)
        torch.testing.assert_close(mixed[begin:end].double(), expected, atol=tolerance, rtol=tolerance)
        for skipped in {0, len(piece.token_ids) // 3, len(piece.token_ids) - 1}:
            first = begin + skipped
            part = Piece(piece.sequence, piece.start + skipped, piece.token_ids[skipped:], 1)
            pieces, rows = [part], slice(first, end)
            arguments = raw[rows].clone(), new_keys[rows], new_values[rows], turn and turn_of(turn, rows)
            alone = attend_all(*arguments, made_.kv, made_.rows(pieces, end - first), kind, sinks)
            assert torch.equal(alone, mixed[rows]), (piece.start, skipped)


def random_turn(rope: Rope, count: int) -> Rotary:
    """Turns by any angles: what they are is for the tests of frequencies."""
    cos, sin = torch.randn(2, count, 1, rope.channels, device="cuda")
    growth = None if rope.query_growth is None else torch.rand(count, 1, 1, device="cuda") + 1
    return Rotary(cos, sin, growth, rope.interleaved)


def turn_of(turn: Rotary, rows: slice) -> Rotary:
    """Those of some of the rows."""
    growth = None if turn.growth is None else turn.growth[rows]
    return Rotary(turn.cos[rows], turn.sin[rows], growth, turn.interleaved)


@torch.no_grad()
def test_launches_do_not_depend_on_how_many_requests_share_the_pass(device: CudaDevice) -> None:
    made_ = made(device, attention_of(8, 2, 64), torch.bfloat16)
    counts = set()
    for pieces in (made_.pieces[2:4], made_.pieces[:-1]):
        count = sum(len(piece.token_ids) for piece in pieces)
        q, keys = (
            torch.randn(count, 8, 64, device="cuda").bfloat16(),
            torch.randn(count, 2, 64, device="cuda").bfloat16(),
        )
        turn, rows = Rotary(*torch.randn(2, count, 1, 64, device="cuda")), made_.rows(pieces, count)
        attend_all(q, keys, keys, turn, made_.kv, rows, attention_of(8, 2, 64))
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
            attend_all(q, keys, keys, turn, made_.kv, rows, attention_of(8, 2, 64))
            torch.cuda.synchronize()
        counts.add(sum(str(event.device_type).endswith("CUDA") for event in profiled.events()))
    assert counts == {4}


async def test_without_triton_one_warning_says_why_and_the_tokens_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(tiny_models.save, "llama_gqa_llama3", tmp_path, 2)

    async def answers() -> list[tuple[int, ...]]:
        async with Model.open(tmp_path, device="cuda", dtype="float32") as model:
            prompts = ([1, 5, 9], [4, 3, 7, 11, 20, 8], [9])
            several = [model.generate(prompt, max_new_tokens=6, ignore_eos=True) for prompt in prompts]
            return [output.token_ids for output in await asyncio.gather(*several)]

    expected = await answers()

    def no_compiler(*arguments: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    pass_attention._kernels.cache_clear()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "penstock"):
        patch.setattr("pipeline.models.paged_attention.try_out", no_compiler)
        assert await answers() == expected
    pass_attention._kernels.cache_clear()
    warned = [record.getMessage() for record in caplog.records if "request by request" in record.getMessage()]
    assert len(warned) == 1
    assert "Failed to find C compiler" in warned[0]
