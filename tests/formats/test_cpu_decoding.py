"""Kernels of numba against torch, whose decoding is the definition, and the choice between both."""

import logging
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from support.golden_cases import decoding_by, kept_cases, same_bits
from support.integer_formats import GOLDEN, INTEGERS
from support.stored_parts import find

from pipeline.formats import cpu_choice, cpu_compiled, decoding
from pipeline.formats.awq import Awq
from pipeline.formats.cpu_threads import block_threads, share_out
from pipeline.formats.decoding import decoded_product
from pipeline.formats.fp4 import MXFP4, NVFP4, Float4Matrix
from pipeline.formats.fp8 import Float8, Float8Matrix
from pipeline.formats.gptq import Gptq
from pipeline.formats.integers import IntegerMatrix, Layout
from pipeline.formats.nf4 import Nf4Matrix, _State
from pipeline.formats.packed_ints import Integers, PackedIntegers
from pipeline.formats.tensors import TensorSpec

cpu_decoding = pytest.importorskip("pipeline.formats.cpu_decoding", reason="needs numba", exc_type=ImportError)
instructions = pytest.importorskip("pipeline.formats.cpu_instructions", reason="needs numba", exc_type=ImportError)
SHAPE = (72, 1024)


def scales(*shape: int) -> torch.Tensor:
    """Of all magnitudes, so that products are rounded to what has no exponent left, and overflow."""
    values = torch.randn(shape) * 2.0 ** torch.randint(-30, 20, shape)
    values.view(-1)[:3] = torch.tensor([float("inf"), float("nan"), 0.0])
    return values


def integers(
    layout: Layout, dtype: torch.dtype, order_D: torch.Tensor | None = None, shape: tuple[int, int] = SHAPE
) -> IntegerMatrix:
    def part(spec: TensorSpec) -> torch.Tensor:
        if spec.short == "q.scale":
            return scales(*spec.shape).to(dtype)
        if spec.dtypes == ("I8",):
            return torch.randint(-128, 128, spec.shape, dtype=torch.int8)
        return torch.randint(-(2**31), 2**31, spec.shape).to(torch.int32)

    asked = layout.stored_as(TensorSpec("q", "q.weight", shape))  # type: ignore[attr-defined]
    return IntegerMatrix(layout, shape, tuple(part(one) for one in asked if not one.is_header), order_D)


def matrices() -> dict[str, IntegerMatrix | Float8Matrix | Float4Matrix | Nf4Matrix]:
    """One of each way in which kernels decode, [F, D]."""
    torch.manual_seed(1)
    (rows, columns), order = SHAPE, torch.randint(0, 32, SHAPE[1:], dtype=torch.int32)
    bytes_FD = torch.arange(256).to(torch.uint8).repeat(rows * columns // 256).view(SHAPE)
    pairs, e4m3 = bytes_FD[:, : columns // 2].contiguous(), bytes_FD.view(torch.float8_e4m3fn)
    powers = torch.randint(0, 256, (rows, columns // 32), dtype=torch.uint8)
    small_scales = torch.randint(0, 127, (rows, columns // 16), dtype=torch.uint8).view(torch.float8_e4m3fn)
    nested = (torch.rand(rows * columns // 64 // 256 + 1), torch.randn(256))
    magnitudes = torch.randint(0, 256, (rows * columns // 64,), dtype=torch.uint8)
    by_rows = Float8("", ("scale",), 1, None, rounds_to_scales=True)
    return {
        "int4": integers(PackedIntegers(4, 128, symmetric=True), torch.bfloat16),
        "int4 with zeros": integers(PackedIntegers(4, 32, symmetric=False), torch.float16),
        "int4 of fp32 scales": integers(PackedIntegers(4, None, symmetric=False), torch.float32),
        "int4 in order": integers(PackedIntegers(4, 32, symmetric=False), torch.float16, order),
        "int8": integers(PackedIntegers(8, 64, symmetric=False), torch.bfloat16),
        "int8 in order": integers(PackedIntegers(8, 32, symmetric=True), torch.bfloat16, order),
        "bytes": integers(Integers(None, symmetric=False), torch.float16),
        "AWQ": integers(Awq(128), torch.float16),
        "GPTQ": integers(Gptq(4, 128), torch.float16),
        "GPTQ in order": integers(Gptq(4, 32), torch.float16, order),
        "GPTQ of one word": integers(Gptq(4, 8), torch.float16, shape=(72, 8)),
        "GPTQ of 8 bits": integers(Gptq(8, 128, version=2), torch.bfloat16),
        "FP8 of blocks": Float8Matrix(Float8("", ("scale",), 128, 100), e4m3, scales(1, 11)),
        "FP8 of rows": Float8Matrix(by_rows, e4m3, scales(rows, 1).to(torch.bfloat16)),
        "MXFP4": Float4Matrix(MXFP4, pairs, powers, None),
        "NVFP4": Float4Matrix(NVFP4, pairs, small_scales, torch.tensor([7.3])),
        "nf4": Nf4Matrix(_State(64, torch.bfloat16, 0.0), SHAPE, pairs.flatten(), scales(rows * columns // 64), ()),
        "nf4 nested": Nf4Matrix(_State(64, torch.float16, 0.3), SHAPE, pairs.flatten(), magnitudes, nested),
    }


@pytest.mark.parametrize("has_look_up", sorted({False, instructions.HAS_LOOK_UP}))
def test_kernels_round_as_torch_does_whatever_the_scales(has_look_up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "HAS_LOOK_UP", has_look_up)
    for name, matrix in matrices().items():
        encoded = matrix.encoded()
        assert encoded is not None
        for dtype in (torch.bfloat16, *[torch.float32, torch.float16] * (name == "int4 with zeros")):  # each compiles
            rows = cpu_decoding.RowDecoder(encoded, dtype)
            for first, last in ((0, 32), (32, 72)):
                wanted = matrix.decoded_rows(first, last, dtype)
                assert same_bits(rows.decoded_rows(first, last), wanted), (name, dtype, first)


def test_products_have_the_same_bits_whatever_decodes_and_on_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoding, "BLOCK_BYTES", 0)  # so that a small matrix is several blocks of rows
    monkeypatch.setattr("pipeline.formats.cpu_products.HAS_DOTS", False)
    matrix, threads, products = matrices()["NVFP4"], torch.get_num_threads(), []
    with torch.inference_mode():
        x, bias = torch.randn(3, SHAPE[1], dtype=torch.bfloat16), torch.randn(SHAPE[0])
        try:
            for count, way in ((1, "torch"), (1, "numba"), (2, "numba"), (3, "numba")):
                torch.set_num_threads(count)
                with decoding_by(way):
                    products.append(decoded_product(matrix, x, bias))
                assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)
    assert all(same_bits(products[0], other) for other in products[1:])


def test_what_is_measured_as_faster_decodes_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "penstock")
    matrix = matrices()["nf4"]
    encoded = matrix.encoded()
    assert encoded is not None

    def by_torch(first: int, last: int) -> torch.Tensor:
        return matrix.decoded_rows(first, last, torch.bfloat16)

    for chosen, seconds in (("torch", (2.0, 1.0)), ("numba", (1.0, 2.0))):
        measured = iter(seconds)
        monkeypatch.setattr(cpu_choice, "_chosen", {})
        monkeypatch.setattr(cpu_choice, "_seconds", lambda decode, rows, measured=measured: next(measured))
        for _ in range(2):
            assert (cpu_choice.faster(encoded, torch.bfloat16, by_torch, 32) is None) == (chosen == "torch")
        (line,) = caplog.messages
        assert line.startswith(f"{chosen} decodes nf4 to bfloat16 (G numbers a second on a thread: numba 0.00, torch ")
        caplog.clear()


def test_before_the_first_pass_it_is_chosen_for_all_that_are_stored_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock")
    case = next(case for case in kept_cases(GOLDEN) if case.format == "GPTQ")
    stored = find(tmp_path / "file", INTEGERS[case.format](**case.options), case.shape, case.parts)
    with decoding_by("numba"):
        cpu_choice.choose([stored, stored], torch.bfloat16)
    assert len(caplog.messages) == 1 + bool(instructions.HAS_DOTS)


def test_numbers_of_4_bits_in_an_odd_number_of_columns_are_left_to_torch() -> None:
    matrix = IntegerMatrix(
        PackedIntegers(4, None, symmetric=True),
        (8, 33),
        (torch.zeros(8, 5, dtype=torch.int32), torch.ones(8, 1)),
        None,
    )
    encoded = matrix.encoded()
    assert encoded is not None
    assert not cpu_decoding.can_decode(encoded)


def test_an_error_of_shared_work_is_raised_when_all_threads_are_done() -> None:
    done = []

    def work(item: int) -> None:
        done.append(item)
        if item == 1:
            raise ValueError("item 1")

    with pytest.raises(ValueError, match="item 1"):
        share_out(range(6), work)
    assert sorted(done) == [*range(6)] or torch.get_num_threads() < 2


def test_torch_computes_with_one_thread_in_each_however_often_it_is_asked() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        asked = [block_threads(3).submit(torch.get_num_threads).result() for _ in range(4)]
    finally:
        torch.set_num_threads(threads)
    assert asked == [1, 1, 1, 1]


def test_a_child_that_was_forked_has_threads_of_its_own() -> None:
    block_threads(2).submit(int).result()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that of forking beside threads
        child = os.fork()
    if not child:
        signal.alarm(9)
        try:
            block_threads(2).submit(os._exit, 0).result()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_numba_that_may_not_compile_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu_decoding.config, "DISABLE_JIT", 1)
    assert cpu_compiled.kernels.__wrapped__() is None
    assert "RuntimeError: NUMBA_DISABLE_JIT is set" in caplog.text
