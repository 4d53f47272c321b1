"""Experts in bf16 that a CPU multiplies as one: with the bits that each gives alone."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from support import tiny_models
from support.expert_answers import said_by
from support.written_models import write_model

from pipeline.formats import cpu_compiled
from pipeline.formats.dense import DenseMatrix
from pipeline.formats.fp8 import Float8, Float8Matrix, blocks
from pipeline.formats.matrix import Weights
from pipeline.models import cpu_grouped_experts
from pipeline.models.cpu_grouped_experts import multiply, places
from pipeline.models.experts import expert_product
from pipeline.models.feed_forwards import Experts, FeedForward, Routing

cpu_products = pytest.importorskip("pipeline.formats.cpu_products", reason="needs numba", exc_type=ImportError)
pytestmark = pytest.mark.skipif(not cpu_products.HAS_DOTS, reason="needs AVX-512 BF16")
HIDDEN, SIZE, CHOSEN, ROWS = 64, 32, 2, 40
BY_ROW = Float8("", ("scale",), 1, None)
Scales: TypeAlias = Callable[..., torch.Tensor]
KIND = Experts(count=4, chosen=CHOSEN, expert=FeedForward(size=SIZE), routing=Routing())


@pytest.fixture(autouse=True)
def with_or_without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """With AMX torch multiplies by matrices in bf16, though the kernels are there."""
    monkeypatch.setattr(cpu_compiled, "has_dots", lambda: True)


def fp8_expert(stored_in: Float8 = BY_ROW, up: Float8 | None = None, scales: Scales = torch.rand) -> Weights:
    """Stored alike, but for `up` where that says something else."""
    each, tensors = dict[str, Float8Matrix](), dict[str, torch.Tensor]()
    for short, (rows, columns) in (("gate", (SIZE, HIDDEN)), ("up", (SIZE, HIDDEN)), ("down", (HIDDEN, SIZE))):
        stored = up or stored_in if short == "up" else stored_in
        values_FD = tensors[short] = torch.randn(rows, columns).to(torch.float8_e4m3fn)
        grid = blocks(rows, stored.block_rows), blocks(columns, stored.block_columns)
        made = tensors[f"{short}.scale"] = scales(*grid) if stored.block_rows else scales(1).squeeze(0)
        each[short] = Float8Matrix(stored, values_FD, made)
    return Weights(tensors, each)


def expert(*, side_by_side: bool) -> Weights:
    """Gate and up as one tensor of a file has them, or as two have them."""
    both_FD = torch.randn(2 * SIZE, HIDDEN).to(torch.bfloat16)
    gate_FD, up_FD = both_FD.split(SIZE) if side_by_side else (one.clone() for one in both_FD.split(SIZE))
    tensors = {"gate": gate_FD, "up": up_FD, "down": torch.randn(HIDDEN, SIZE).to(torch.bfloat16)}
    return Weights(tensors, {short: DenseMatrix(one) for short, one in tensors.items()})


def powers(*shape: int) -> torch.Tensor:
    return torch.randint(120, 130, shape, dtype=torch.uint8)


def in_bf16(*shape: int) -> torch.Tensor:
    return torch.rand(*shape).to(torch.bfloat16)


def taken_alike(each: Sequence[tuple[Weights, int, int]]) -> list[tuple[Any, list[tuple[Any, int, int]]]]:
    """What is multiplied by in a call each: how it is stored, and its addresses and rows."""
    found = defaultdict[Any, list[Any]](list)
    for weights, first, last in each:
        one = places(KIND.expert, weights, 0)
        assert one is not None
        found[one.wide, one.down].append((one, (one.offsets, first, last)))
    return [(those[0][0], [run for _, run in those]) for those in found.values()]


@pytest.mark.parametrize(
    "make",
    [
        lambda index: expert(side_by_side=index % 2 == 0),
        lambda _: fp8_expert(),
        lambda _: fp8_expert(scales=in_bf16),
        lambda _: fp8_expert(Float8("", ("scale",), 16, 32)),
        lambda _: fp8_expert(Float8("", ("scale",), 128, 32), scales=in_bf16),
        lambda _: fp8_expert(Float8("", ("scale",), 16, 32), scales=powers),
        lambda _: fp8_expert(Float8("", ("scale",), None, None)),
    ],
    ids=["bf16", "FP8", "scales in bf16", "blocks", "large blocks", "powers", "one scale"],
)
def test_experts_give_each_row_what_they_give_alone(
    make: Callable[[int], Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", HIDDEN * SIZE)
    input_TD, order = torch.randn(ROWS, HIDDEN).to(torch.bfloat16), torch.randperm(ROWS * CHOSEN)
    ends = [0, *itertools.accumulate((1, 2, 7, cpu_grouped_experts.MANY_ROWS))]
    each = [(make(index), *span) for index, span in enumerate(itertools.pairwise(ends))]
    outputs_RD = torch.full((ROWS * CHOSEN, HIDDEN), 7.0, dtype=torch.bfloat16)
    with torch.inference_mode():
        ((stored, runs),) = taken_alike(each)
        multiply(KIND.expert, stored, runs, input_TD, order, CHOSEN, input_TD, outputs_RD)
        for weights, first, last in each:
            input_RD = input_TD[order[first:last] // CHOSEN]
            assert torch.equal(outputs_RD[order[first:last]], expert_product(KIND, weights, input_RD)), first
        assert bool((outputs_RD[order[ends[-1] :]] == 7).all())


def test_those_that_the_kernels_do_not_take_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, by_row = expert(side_by_side=False), fp8_expert()

    def left(weights: Weights, kind: FeedForward = KIND.expert) -> bool:
        return places(kind, weights, 0) is None

    assert left(plain), "small"
    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", HIDDEN * SIZE)
    assert not left(plain)
    assert left(Weights({**plain.tensors, "up_bias": torch.zeros(SIZE)}, plain.matrices))
    assert left(plain, FeedForward(size=SIZE, gated=False))
    assert left(plain, FeedForward(size=SIZE, fused=True))
    assert left(Weights({**plain.tensors, **by_row.tensors}, {**plain.matrices, "down": by_row.matrices["down"]}))
    assert left(fp8_expert(up=Float8("", ("scale",), 1, 32))), "gate and up are stored differently"
    assert left(fp8_expert(Float8("", ("scale",), 12, 32))), "no number of bits of a row's number"
    assert left(fp8_expert(scales=lambda *shape: torch.rand(*shape).to(torch.float16)))
    assert left(fp8_expert(scales=lambda *shape: torch.rand(2 * shape[0], shape[1])[::2])), "scales with gaps"
    wide = expert(side_by_side=False)
    assert left(Weights(wide.tensors, {short: DenseMatrix(one.weight_FD.float()) for short, one in dense(wide)}))
    odd = {short: DenseMatrix(one.weight_FD[:-4]) for short, one in dense(plain)}
    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", 0)
    assert left(Weights(plain.tensors, {**plain.matrices, "gate": odd["gate"], "up": odd["up"]}))


def test_what_lies_in_a_copy_has_no_place_in_its_slot() -> None:
    values_FD = torch.zeros(SIZE * HIDDEN + 1, dtype=torch.uint8)[1:].view(torch.float8_e4m3fn)
    each, tensors = dict[str, Float8Matrix](), dict[str, torch.Tensor]()
    for short, shape in (("gate", (SIZE, HIDDEN)), ("up", (SIZE, HIDDEN)), ("down", (HIDDEN, SIZE))):
        tensors[short], tensors[f"{short}.scale"] = values_FD.view(shape), torch.rand(shape[0], 1)
        each[short] = Float8Matrix(BY_ROW, tensors[short], tensors[f"{short}.scale"])
    assert places(KIND.expert, Weights(tensors, each), 0) is None


def dense(weights: Weights) -> list[tuple[str, DenseMatrix]]:
    return [(short, one) for short, one in weights.matrices.items() if isinstance(one, DenseMatrix)]


def test_a_model_says_the_same_with_and_without_whatever_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", HIDDEN * SIZE)
    shape = {"hidden_size": HIDDEN, "moe_intermediate_size": SIZE, "num_experts": 7, "num_experts_per_tok": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "num_hidden_layers": 2}
    sizes = {"vocab_size": tiny_models.VOCABULARY_SIZE, "intermediate_size": 96, "max_position_embeddings": 256}
    write_model(tmp_path, {"model_type": "qwen3_moe", **shape, **heads, **sizes}, torch.bfloat16)
    prompts, calls = [[7], [*range(3, 26)], [11, 4]], list[int]()

    def count(kind: Any, stored: Any, runs: Sequence[Any], *others: Any) -> None:
        calls.append(len(runs))
        multiply(kind, stored, runs, *others)

    monkeypatch.setattr(cpu_grouped_experts, "multiply", count)
    answers = [said_by(tmp_path, prompts, device="cpu", gpu_experts=slots) for slots in (1, 5, 14)]
    assert max(calls) > 1
    calls.clear()
    said_by(tmp_path, prompts, device="cpu", gpu_experts=5, batch_invariant=True)
    assert not calls, "by formula, each expert is multiplied by alone"
    monkeypatch.setattr(cpu_grouped_experts, "places", lambda *_: None)
    answers.append(said_by(tmp_path, prompts, device="cpu", gpu_experts=5))
    assert all(one == answers[0] for one in answers)
