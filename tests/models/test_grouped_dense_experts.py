"""Experts in bf16 that a CPU multiplies as one: with the bits that each gives alone."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.expert_answers import said_by
from support.written_models import write_model

from pipeline.formats import cpu_compiled
from pipeline.formats.dense import DenseMatrix
from pipeline.formats.fp8 import Float8, Float8Matrix
from pipeline.formats.matrix import Weights
from pipeline.models import experts
from pipeline.models.experts import expert_product, multiply_grouped
from pipeline.models.feed_forwards import Experts, FeedForward, Routing

cpu_products = pytest.importorskip("pipeline.formats.cpu_products", reason="needs numba", exc_type=ImportError)
pytestmark = pytest.mark.skipif(not cpu_products.HAS_DOTS, reason="needs AVX-512 BF16, without AMX")
HIDDEN, SIZE, CHOSEN, ROWS = 64, 32, 2, 40
KIND = Experts(count=4, chosen=CHOSEN, expert=FeedForward(size=SIZE), routing=Routing())


def fp8_expert(up_group: int | None = None) -> Weights:
    """A scale for each row, but for `up` of so many columns."""
    each, tensors = dict[str, Float8Matrix](), dict[str, torch.Tensor]()
    for short, (rows, columns) in (("gate", (SIZE, HIDDEN)), ("up", (SIZE, HIDDEN)), ("down", (HIDDEN, SIZE))):
        group = up_group if short == "up" else None
        values_FD = tensors[short] = torch.randn(rows, columns).to(torch.float8_e4m3fn)
        scales = tensors[f"{short}.scale"] = torch.rand(rows, columns // (group or columns))
        each[short] = Float8Matrix(Float8("", ("scale",), 1, group), values_FD, scales)
    return Weights(tensors, each)


def expert(*, side_by_side: bool) -> Weights:
    """Gate and up as one tensor of a file has them, or as two have them."""
    both_FD = torch.randn(2 * SIZE, HIDDEN).to(torch.bfloat16)
    gate_FD, up_FD = both_FD.split(SIZE) if side_by_side else (one.clone() for one in both_FD.split(SIZE))
    tensors = {"gate": gate_FD, "up": up_FD, "down": torch.randn(HIDDEN, SIZE).to(torch.bfloat16)}
    return Weights(tensors, {short: DenseMatrix(one) for short, one in tensors.items()})


@pytest.mark.parametrize("fp8", [False, True])
def test_experts_give_each_row_what_they_give_alone(fp8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", HIDDEN * SIZE)
    input_TD, order = torch.randn(ROWS, HIDDEN).to(torch.bfloat16), torch.randperm(ROWS * CHOSEN)
    ends = [0, *itertools.accumulate((1, 2, 7, 24, 25))]
    spans = enumerate(itertools.pairwise(ends))
    each = [(fp8_expert() if fp8 else expert(side_by_side=index % 2 == 0), *span) for index, span in spans]
    outputs_RD = torch.full((ROWS * CHOSEN, HIDDEN), 7.0, dtype=torch.bfloat16)
    with torch.inference_mode():
        (left,) = multiply_grouped(KIND, each, order, input_TD, outputs_RD)
        assert left[1:] == each[-1][1:]  # which has many rows
        for weights, first, last in each[:-1]:
            input_RD = input_TD[order[first:last] // CHOSEN]
            assert torch.equal(outputs_RD[order[first:last]], expert_product(KIND, weights, input_RD)), first
        assert bool((outputs_RD[order[ends[-2] :]] == 7).all())


def test_those_that_the_kernels_do_not_take_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs_RD, order = torch.zeros(CHOSEN, HIDDEN, dtype=torch.bfloat16), torch.arange(CHOSEN)
    plain = expert(side_by_side=False)

    def left(weights: Weights, kind: Experts = KIND, dtype: torch.dtype = torch.bfloat16) -> bool:
        input_TD = torch.ones(1, HIDDEN, dtype=dtype)
        return multiply_grouped(kind, [(weights, 0, 1)], order, input_TD, outputs_RD.to(dtype)) == [(weights, 0, 1)]

    assert left(plain), "small"
    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", HIDDEN * SIZE)
    assert not left(plain)
    assert left(plain, dtype=torch.float32)
    assert left(Weights({**plain.tensors, "up_bias": torch.zeros(SIZE)}, plain.matrices))
    for changed in (FeedForward(size=SIZE, gated=False), FeedForward(size=SIZE, fused=True)):
        assert left(plain, Experts(count=4, chosen=CHOSEN, expert=changed, routing=Routing()))
    values_FD = torch.ones(HIDDEN, SIZE).to(torch.float8_e4m3fn)
    down = Float8Matrix(Float8("", ("scale",), None, None), values_FD, torch.ones(()))
    assert left(Weights(plain.tensors, {**plain.matrices, "down": down}))
    assert left(fp8_expert(up_group=32)), "gate and up are stored differently"
    mixed = [(plain, 0, 1), (fp8_expert(), 1, 2)]
    input_TD = torch.ones(1, HIDDEN, dtype=torch.bfloat16)
    assert [one[1] for one in multiply_grouped(KIND, mixed, order, input_TD, outputs_RD)] == [1]
    odd = {short: DenseMatrix(one.weight_FD[:-4]) for short, one in plain.matrices.items()}  # type: ignore[attr-defined]
    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", 0)
    assert left(Weights(dict.fromkeys(odd, plain.tensors["up"]), {**plain.matrices, "gate": odd["gate"]}))


def test_a_model_says_the_same_with_and_without_whatever_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", HIDDEN * SIZE)
    shape = {"hidden_size": HIDDEN, "moe_intermediate_size": SIZE, "num_experts": 7, "num_experts_per_tok": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "num_hidden_layers": 2}
    sizes = {"vocab_size": tiny_models.VOCABULARY_SIZE, "intermediate_size": 96, "max_position_embeddings": 256}
    write_model(tmp_path, {"model_type": "qwen3_moe", **shape, **heads, **sizes}, torch.bfloat16)
    prompts, calls, grouped = [[7], [*range(3, 26)], [11, 4]], list[int](), experts.multiply_grouped

    def count(kind: Any, each: Sequence[Any], *others: Any) -> Sequence[Any]:
        left = grouped(kind, each, *others)
        calls.append(len(each) - len(left))
        return left

    monkeypatch.setattr(experts, "multiply_grouped", count)
    answers = [said_by(tmp_path, prompts, device="cpu", gpu_experts=slots) for slots in (1, 5, 14)]
    assert max(calls) > 1
    calls.clear()
    said_by(tmp_path, prompts, device="cpu", gpu_experts=5, batch_invariant=True)
    assert not calls, "by formula, each expert is multiplied by alone"
    monkeypatch.setattr(experts, "multiply_grouped", lambda kind, each, *_: each)
    answers.append(said_by(tmp_path, prompts, device="cpu", gpu_experts=5))
    assert all(one == answers[0] for one in answers)
