"""Formats of whole numbers: what their libraries decoded (golden/write_integers.py), and what they refuse."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.golden_cases import check, kept_cases
from support.integer_formats import GOLDEN, INTEGERS
from support.stored_parts import find

from pipeline.errors import CheckpointError, ConfigError
from pipeline.formats.awq import Awq
from pipeline.formats.decoding import BLOCK_BYTES
from pipeline.formats.gptq import Gptq
from pipeline.formats.integers import IntegerMatrix
from pipeline.formats.matrix import Format
from pipeline.formats.packed_ints import Integers, PackedIntegers
from pipeline.formats.tensors import TensorSpec

KEPT = kept_cases(GOLDEN)


@pytest.mark.parametrize("index", range(len(KEPT)), ids=lambda index: f"{KEPT[index].format}-{KEPT[index].options}")
def test_numbers_are_decoded_as_the_library_does_whole_and_in_slices(index: int, tmp_path: Path) -> None:
    case = KEPT[index]
    check(case, INTEGERS[case.format](**case.options), tmp_path)


@pytest.mark.parametrize("stored_in", [
    PackedIntegers(bits=4, group=32, symmetric=False),
    Awq(group=32),
    Gptq(bits=4, group=32),
], ids=lambda one: type(one).__name__)  # fmt: skip
def test_blocks_of_rows_are_those_of_the_matrix(stored_in: Format) -> None:
    """A matrix of three blocks, the last of them smaller."""
    shape = (272, BLOCK_BYTES // 4 // 128)
    parts = tuple(
        (torch.rand(part.shape) if part.short == "q.scale" else torch.randint(-(2**31), 2**31, part.shape)).to(
            torch.float16 if part.short == "q.scale" else torch.int32
        )
        for part in stored_in.stored_as(TensorSpec("q", "q.weight", shape))
        if not part.is_header
    )
    matrix = IntegerMatrix(stored_in, shape, parts, None)  # type: ignore[arg-type]
    x = torch.randn(2, shape[1])
    assert torch.equal(matrix.decoded(torch.float32), matrix.decoded_rows(0, 272, torch.float32))
    torch.testing.assert_close(matrix.apply(x), x @ matrix.decoded(torch.float32).T, rtol=1e-3, atol=1e-2)


def test_an_order_travels_only_where_equal_groups_do_not_lie_one_behind_the_other(tmp_path: Path) -> None:
    def parts(order: torch.Tensor) -> list[str]:
        columns, groups = len(order), int(order.max()) + 1
        tensors = {
            "qweight": torch.zeros(-(-columns // 8), 16, dtype=torch.int32),
            "scales": torch.ones(groups, 16),
            "qzeros": torch.zeros(groups, 2, dtype=torch.int32),
            "g_idx": order.to(torch.int32),
        }
        stored = find(tmp_path / "parts", Gptq(bits=4, group=32), (16, columns), tensors)
        return [part.short for part in stored.tensors]

    held = ["q", "q.scale", "q.zeros"]
    assert parts(torch.arange(96) // 32) == held
    assert parts(torch.arange(95) // 32) == [*held, "q.order"]
    assert parts((torch.arange(96) // 32).flip(0)) == [*held, "q.order"]


@pytest.mark.parametrize("stored_in", [
    PackedIntegers(bits=4, group=32, symmetric=True), Integers(group=32, symmetric=True), Awq(group=32)
], ids=lambda one: type(one).__name__)  # fmt: skip
def test_a_group_that_does_not_fit_the_columns_is_refused(stored_in: Format) -> None:
    with pytest.raises(ConfigError, match=r"^layer\.q\.weight: .*groups of 32: need columns .*, have 80; use"):
        stored_in.stored_as(TensorSpec("q", "layer.q.weight", (16, 80)))


def test_awq_rows_that_fill_no_word_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^layer\.q\.weight: AWQ int4, groups of 32: need a multiple of 8 rows"):
        Awq(group=32).stored_as(TensorSpec("q", "layer.q.weight", (20, 64)))


@pytest.mark.parametrize("name", ["weight_shape", "weight_g_idx"])
def test_a_header_that_contradicts_the_matrix_is_named(name: str, tmp_path: Path) -> None:
    case = next(case for case in KEPT if case.options.get("ordered"))
    wrong = replace(case, parts={**case.parts, name: case.parts[name] + 1})
    with pytest.raises(
        CheckpointError, match=rf"parts.safetensors: tensor 'model\.q_proj\.{name}': need .*, have .*; fetch"
    ):
        check(wrong, INTEGERS[case.format](**case.options), tmp_path)
