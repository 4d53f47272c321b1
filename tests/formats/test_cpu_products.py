"""Products of rows in bf16 on a CPU that adds up products in bf16 by itself."""

import errno
import itertools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.golden_cases import decoding_by, same_bits

from pipeline.errors import ResourceError
from pipeline.formats import cpu_choice, cpu_compiled, decoding
from pipeline.formats.decoding import decoded_product, projections
from pipeline.formats.dense import DenseMatrix, StoredDense
from pipeline.formats.fp4 import MXFP4, NVFP4, Float4Matrix
from pipeline.formats.fp8 import Float8, Float8Matrix
from pipeline.formats.integers import IntegerMatrix
from pipeline.formats.matrix import Weights
from pipeline.formats.nf4 import Nf4Matrix, _State
from pipeline.formats.packed_ints import PackedIntegers
from pipeline.formats.tensors import TensorRange, TensorSpec

cpu_products = pytest.importorskip("pipeline.formats.cpu_products", reason="needs numba", exc_type=ImportError)
ROWS, COLUMNS = SHAPE = (70, 256)
HAS_FASTER_DOTS = cpu_compiled.has_dots
pytestmark = pytest.mark.skipif(not cpu_products.HAS_DOTS, reason="needs AVX-512 BF16")


@pytest.fixture(autouse=True)
def with_or_without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """With AMX torch multiplies by matrices in bf16, though the kernels are there."""
    monkeypatch.setattr(cpu_compiled, "has_dots", lambda: True)


def fp8(rows: int, columns: int, group: int | None = None, dtype: torch.dtype = torch.bfloat16) -> Float8Matrix:
    stored_in = Float8("", ("scale",), 1, group, rounds_to_scales=dtype == torch.float16)
    numbers = torch.randint(0, 0x7F, (rows, columns)) + 0x80 * torch.randint(0, 2, (rows, columns))
    scales = torch.randn(rows, columns // (group or columns)).to(dtype)
    return Float8Matrix(stored_in, numbers.to(torch.uint8).view(torch.float8_e4m3fn), scales)


def matrices() -> dict[str, IntegerMatrix | Float8Matrix | Float4Matrix | Nf4Matrix]:
    """Those decoded in registers, and others; rows are left over where four are taken at once."""
    torch.manual_seed(1)
    words, zeros = (torch.randint(-(2**31), 2**31, (rows, COLUMNS // 8)).to(torch.int32) for rows in (ROWS, 9))
    pairs, scales = words.view(torch.uint8), torch.rand(ROWS, COLUMNS // 32) + 0.5
    powers = torch.randint(124, 130, scales.shape, dtype=torch.uint8)
    halves = scales.to(torch.float16)
    return {
        "int4": IntegerMatrix(PackedIntegers(4, 32, symmetric=True), SHAPE, (words, scales.to(torch.bfloat16)), None),
        "int4 with zeros": IntegerMatrix(
            PackedIntegers(4, 64, symmetric=False),
            SHAPE,
            (words, halves[:, :4].contiguous(), zeros[:, :4].contiguous()),
            None,
        ),
        "MXFP4": Float4Matrix(MXFP4, pairs, powers, None),
        "NVFP4": Float4Matrix(NVFP4, pairs, halves.repeat(1, 2).to(torch.float8_e4m3fn), torch.tensor([7.3])),
        "nf4": Nf4Matrix(_State(64, torch.bfloat16, 0.0), SHAPE, pairs.flatten(), scales.flatten()[: ROWS * 4], ()),
        "FP8": fp8(*SHAPE),
        "FP8 of many columns": fp8(7, 2080),
        "FP8 in fp16": fp8(*SHAPE, 64, torch.float16),
        "FP8 of short groups": fp8(*SHAPE, 16),
    }


@pytest.mark.parametrize("name", matrices())
def test_a_row_has_the_same_bits_however_many_there_are_and_whatever_decodes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "BLOCK_BYTES", 0)
    monkeypatch.setattr(cpu_products, "PIECE_NUMBERS", 0)
    monkeypatch.setattr(cpu_products, "THREAD_NUMBERS", 1)
    matrix, threads = matrices()[name], torch.get_num_threads()
    rows, columns = matrix.shape
    x, bias = torch.randn(300, columns).to(torch.bfloat16), torch.randn(rows)
    x[1] = 0  # as rows are that fill up
    weights = matrix.decoded(torch.bfloat16).float()
    with torch.inference_mode(), decoding_by("numba"):
        whole = decoded_product(matrix, x, bias)
        off = (whole.float() - (x.float() @ weights.T + bias)).abs()
        assert bool((off <= 2**-7 * (x.float().abs() @ weights.abs().T + bias.abs())).all())
        try:
            for count in (1, 2, 3, 4, 7, 9, 130):
                torch.set_num_threads(1 + count % 3)
                assert same_bits(decoded_product(matrix, x[:count], bias), whole[:count]), count
        finally:
            torch.set_num_threads(threads)
        monkeypatch.setattr(cpu_choice, "faster", lambda *_: None)
        monkeypatch.setattr(decoding, "faster", lambda *_: None)
        assert same_bits(decoded_product(matrix, x, bias), whole), "decoded by torch"
        picked = decoded_product(matrix, torch.eye(columns, dtype=torch.bfloat16))
        assert torch.equal(picked.T, matrix.decoded(torch.bfloat16))
        assert len(decoded_product(matrix, x[:0])) == 0


def test_only_rows_in_bf16_of_whole_registers_are_taken() -> None:
    assert cpu_products.can_multiply(torch.empty(1, 32, dtype=torch.bfloat16))
    assert not cpu_products.can_multiply(torch.empty(1, 32))
    assert not cpu_products.can_multiply(torch.empty(1, 48, dtype=torch.bfloat16))


@pytest.mark.parametrize("shape", [(70, 256), (7, 2080)])
def test_a_matrix_in_bf16_gives_a_row_the_same_bits_however_many_there_are(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", 0)
    monkeypatch.setattr(cpu_products, "THREAD_NUMBERS", 1)
    (rows, columns), threads = shape, torch.get_num_threads()
    matrix, bias = DenseMatrix(torch.randn(shape).to(torch.bfloat16)), torch.randn(rows)
    x = torch.randn(130, columns).to(torch.bfloat16)
    x[1] = 0  # as rows are that fill up
    weights = matrix.weight_FD.float()
    with torch.inference_mode():
        whole = matrix.apply(x, bias)
        off = (whole.float() - (x.float() @ weights.T + bias)).abs()
        assert bool((off <= 2**-7 * (x.float().abs() @ weights.abs().T + bias.abs())).all())
        try:
            for count in (1, 2, 3, 4, 7, cpu_products.FEW_ROWS, cpu_products.FEW_ROWS + 1):
                torch.set_num_threads(1 + count % 3)
                assert same_bits(matrix.apply(x[:count], bias), whole[:count]), count
        finally:
            torch.set_num_threads(threads)
        assert same_bits(matrix.apply(x.T.contiguous().T, bias), whole), "rows with gaps"
        assert len(matrix.apply(x[:0])) == 0


def test_a_matrix_is_left_to_torch_that_is_small_or_has_gaps_or_another_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_FD, x = torch.randn(64, 128).to(torch.bfloat16), torch.ones(1, 64, dtype=torch.bfloat16)
    taken = weight_FD[:, :64].contiguous()
    assert cpu_compiled.dense_products(taken, x) is None
    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", taken.numel())
    assert cpu_compiled.dense_products(taken, x) is cpu_products
    for other in (weight_FD[:, :64], taken[:-1], taken.half(), taken.float()):
        assert cpu_compiled.dense_products(other, x) is None
    assert cpu_compiled.dense_products(taken, x.float()) is None


def test_kernels_for_large_matrices_are_ready_before_the_first_pass(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock")
    made, length = list[bool](), 2 * 64 * 32
    one = StoredDense((TensorRange("q", "model.q", Path("file"), 0, length, (64, 32), "BF16"),))
    scales = TensorRange("q.scale", "model.q.scale", Path("file"), length, 64 * 4, (64, 1), "F32")
    monkeypatch.setattr(cpu_products, "compile_dense", lambda: made.append(bool(caplog.messages)))
    for least, large in ((64 * 32 * 2 + 1, False), (64 * 32 * 2, True)):  # with one beside it, as gate and up lie
        monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", least)
        for stored in (one, StoredDense((replace(one.tensors[0], dtype="F16"),))):
            cpu_choice.choose([stored], torch.bfloat16)
        assert made == [True] * large
    (said,) = caplog.messages  # before it compiles
    assert said.startswith("numba multiplies rows in bfloat16 by large matrices (AVX-512 BF16); the first time ")
    monkeypatch.undo()
    cpu_products.compile_dense()
    several = list[tuple[int, int]]()
    monkeypatch.setattr(
        cpu_products, "grouped_products", lambda _, lines, x, columns: several.append((len(lines), columns))
    )
    by_rows = Float8("", ("scale",), 1, None)
    spec = TensorSpec("q", "model.q.weight", (64, 32))
    cpu_choice.choose([by_rows.stored(spec, (replace(one.tensors[0], dtype="F8_E4M3"), scales))], torch.bfloat16)
    assert several == [(1, 64)]


@pytest.mark.parametrize(
    ("tensors", "dtype", "settings", "expected"),
    [
        ([("F16", 4096), ("BF16", 4096)], "auto", {"on_cpu": True}, True),
        ([("F16", 4096), ("BF16", 4096)], "float32", {"on_cpu": True}, False),
        ([("F16", 4096), ("BF16", 4094)], "auto", {"on_cpu": True}, False),
        ([("BF16", 4096)], "auto", {}, False),
        ([], "float32", {"on_cpu": True, "quantised": True}, True),
        ([], "auto", {"quantised": True}, False),
        ([], "auto", {"leaves_experts": True}, True),
        ([("BF16", 2)], "auto", {"on_cpu": True, "attends": True}, True),
        ([("BF16", 2)], "float32", {"on_cpu": True, "attends": True}, False),
        ([("BF16", 2)], "auto", {"attends": True}, False),
        ([("F32", 2)], "auto", {"on_cpu": True, "attends": True}, False),
        ([("F32", 2)], "bfloat16", {"on_cpu": True, "attends": True}, True),
    ],
)
def test_what_compiles_kernels_is_loaded_where_some_may_be_used(
    tensors: list[tuple[str, int]],
    dtype: str,
    settings: dict[str, bool],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = list[bool]()
    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", 4096)  # with one beside it, as gate and up lie
    monkeypatch.setattr(cpu_compiled, "kernels", lambda: loaded.append(True))
    given = {"on_cpu": False, "quantised": False, "attends": False, "leaves_experts": False, **settings}
    cpu_choice.load_kernels(tensors, dtype, **given)
    assert bool(loaded) == expected
    monkeypatch.setattr(cpu_compiled, "has_dots", lambda: False)
    loaded.clear()
    cpu_choice.load_kernels(tensors, dtype, **given)
    assert bool(loaded) == (expected and (not tensors or "attends" in settings))


@pytest.mark.parametrize(("dots", "amx"), [(True, False), (True, True), (False, False)])
def test_torch_multiplies_where_it_does_better(dots: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: dots)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert HAS_FASTER_DOTS.__wrapped__() == (dots and not amx)


def test_kernels_that_cannot_be_kept_say_where_others_could(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_the_disk() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "kernels/index.nbi")

    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", 0)
    monkeypatch.setattr(cpu_products, "compile_dense", fill_the_disk)
    one = StoredDense((TensorRange("q", "model.q", Path("file"), 0, 4096, (64, 32), "BF16"),))
    with pytest.raises(ResourceError, match=r"No space left on device: 'kernels/index.nbi'; .* NUMBA_CACHE_DIR"):
        cpu_choice.choose([one], torch.bfloat16)


@pytest.mark.parametrize(("is_fp8", "group"), [(False, None), (True, None), (True, 64)])
def test_several_matrices_give_what_each_gives_alone(
    is_fp8: bool, group: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_products, "GROUPED_ROWS", 24)  # so that a last piece has fewer
    counts, threads = (1, 2, 3, 4, 6, 11, 24), torch.get_num_threads()
    each: list[torch.Tensor | Float8Matrix]
    each = [fp8(64, COLUMNS, group) if is_fp8 else torch.randn(64, COLUMNS).to(torch.bfloat16) for _ in counts * 2]
    int4 = matrices()["int4"].encoded()

    def stored(one: torch.Tensor | Float8Matrix) -> Any:
        return one if isinstance(one, torch.Tensor) else one.encoded()

    def product(one: torch.Tensor | Float8Matrix, x: torch.Tensor) -> Any:
        return cpu_products.dense_product(one, x, None) if isinstance(one, torch.Tensor) else one.apply(x)

    x, ends = torch.randn(sum(counts), COLUMNS).to(torch.bfloat16), [0, *itertools.accumulate(counts)]
    table = [
        (each[2 * index + upper], 64 * upper, *span)
        for index, span in enumerate(itertools.pairwise(ends))
        for upper in (0, 1)
    ]
    try:
        for torch_threads in (1, 3):
            torch.set_num_threads(torch_threads)
            with torch.inference_mode():
                listed = [(cpu_products.one_of_several(stored(one)), places) for one, *places in table]
                lines = [(*one.addresses, *places) for one, places in listed]
                together = cpu_products.grouped_products(listed[0][0].alike, lines, x, 128)
                for matrix, column, begin, end in table:
                    alone = product(matrix, x[begin:end])
                    assert same_bits(together[begin:end, column : column + 64].contiguous(), alone), (begin, column)
    finally:
        torch.set_num_threads(threads)
    for odd in (torch.zeros(63, COLUMNS), stored(fp8(63, COLUMNS)), stored(fp8(64, COLUMNS, 16)), int4):
        assert cpu_products.one_of_several(odd) is None


def test_products_that_are_made_together_are_those_made_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "PIECE_NUMBERS", 0)
    monkeypatch.setattr(cpu_products, "THREAD_NUMBERS", 1)
    for names, few in (
        (("int4", "MXFP4", "nf4"), True),
        (("int4", "FP8"), True),
        (("int4", "FP8 of short groups"), False),
    ):
        chosen = {name: matrices()[name] for name in names}
        weights = Weights({"int4_bias": torch.randn(ROWS)}, chosen)
        with torch.inference_mode(), decoding_by("numba"):
            for count in (1, 5, 40):
                x = torch.randn(count, COLUMNS).to(torch.bfloat16)
                known = [one.encoded() for one in chosen.values()]
                assert (cpu_products.products(known, x, [None] * len(names)) is not None) == (few and count < 40)
                for made, name in zip(projections(weights, names, x), names, strict=True):
                    assert same_bits(made, weights.project(name, x)), (name, count)
