"""Kernels that decode stored matrices: the bits of the definition, right products, and no company in a row's bits."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import float_formats, integer_formats
from support.golden_cases import Case, kept_cases, same_bits
from support.stored_parts import find, read

from pipeline.formats.decoding import compile_products, kernels
from pipeline.formats.matrix import Format

pytestmark = pytest.mark.cuda
FORMATS: Mapping[str, Callable[..., Format]] = {**integer_formats.INTEGERS, **float_formats.FLOATS}
KEPT = [case for file in (integer_formats.GOLDEN, float_formats.GOLDEN) for case in kept_cases(file)]


def wide_integers(name: str, rows: int, columns: int, scale_dtype: torch.dtype, **options: Any) -> Case:
    """A matrix of many groups of random parts, over which each warp goes more than once."""
    bits, group = options.get("bits", 4), options["group"] or columns
    per_word, groups = 32 // bits, columns // group
    torch.manual_seed(1)

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32)

    scales = (torch.rand(rows, groups) / 64).to(scale_dtype)
    if name == "AWQ":
        parts = {"qweight": words(columns, rows // 8), "qzeros": words(groups, rows // 8), "scales": scales.T}
    elif name == "GPTQ":
        order = torch.arange(columns)[torch.randperm(columns)] // group
        parts = {"qweight": words(columns // per_word, rows), "qzeros": words(groups, -(-rows // per_word))}
        parts |= {"scales": scales.T, "g_idx": (order if options.pop("shuffled", False) else order.sort()[0]).int()}
    else:
        parts = {"weight_packed": words(rows, columns // per_word), "weight_scale": scales}
        parts |= {"weight_shape": torch.tensor([rows, columns])}
        if not options["symmetric"]:
            parts["weight_zero_point"] = words(-(-rows // per_word), groups)
    return Case(name, (rows, columns), parts, torch.empty(0), options)


def wide_floats(name: str, rows: int, columns: int, **options: Any) -> Case:
    """The same of small floats; 0x7E and 0x3F leave out what is no number."""
    torch.manual_seed(1)

    def some(*shape: int, most: int = 256) -> torch.Tensor:
        return torch.randint(0, most, shape, dtype=torch.uint8)

    grid, pairs = (-(-rows // 128), -(-columns // 128)), some(rows, columns // 2)
    scales, float8 = torch.rand(grid), some(rows, columns, most=0x7E).view(torch.float8_e4m3fn)
    groups = some(rows, columns // 16, most=0x3F).view(torch.float8_e4m3fn)
    state = {"quant_type": "nf4", "shape": [rows, columns], "blocksize": 64, "dtype": "bfloat16"}
    state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.3}
    blocks = rows * columns // 64
    parts = {
        "transformers FP8": {"weight": float8, "weight_scale_inv": scales},
        "compressed-tensors MXFP4": {"weight_packed": pairs, "weight_scale": some(rows, columns // 32, most=9) + 120},
        "compressed-tensors NVFP4": {
            "weight_packed": pairs,
            "weight_scale": groups,
            "weight_global_scale": torch.rand(1),
        },
        "bitsandbytes nf4": {
            "weight": pairs.view(-1, 1),
            "weight.absmax": some(blocks),
            "weight.nested_absmax": torch.rand(-(-blocks // 256)),
            "weight.nested_quant_map": torch.linspace(-1, 1, 256),
            "weight.quant_map": torch.zeros(16),
            "weight.quant_state.bitsandbytes__nf4": torch.frombuffer(
                bytearray(json.dumps(state), "utf-8"), dtype=torch.uint8
            ),
        },
    }
    return Case(name, (rows, columns), parts[name], torch.empty(0), options)


WIDE = [
    wide_integers("pack-quantized", 8208, 4160, torch.bfloat16, bits=4, group=32, symmetric=True),
    wide_integers("pack-quantized", 88, 4608, torch.bfloat16, bits=4, group=128, symmetric=False),
    wide_integers("pack-quantized", 40, 2304, torch.float32, bits=4, group=16, symmetric=True),
    wide_integers("pack-quantized", 88, 2560, torch.float16, bits=8, group=64, symmetric=False),
    wide_integers("GPTQ", 72, 4608, torch.float16, bits=4, group=128, version=1),
    wide_integers("GPTQ", 40, 2560, torch.float16, bits=4, group=128, version=2, shuffled=True),
    wide_integers("GPTQ", 40, 2560, torch.bfloat16, bits=8, group=128, version=1),
    wide_integers("AWQ", 200, 4608, torch.float16, group=128),
    wide_integers("AWQ", 72, 2176, torch.bfloat16, group=32),
    wide_floats("transformers FP8", 200, 4464, block=(128, 128)),
    wide_floats("compressed-tensors MXFP4", 40, 4640),
    wide_floats("compressed-tensors NVFP4", 40, 4640),
    wide_floats("bitsandbytes nf4", 40, 4672, is_double=True),
]


def on_gpu(case: Case, folder: Path) -> tuple[Any, Any]:
    """The matrix, and the kernels that know how to decode it."""
    matrix: Any = read(find(folder / "parts", FORMATS[case.format](**case.options), case.shape, case.parts), "cuda")
    if (encoded := matrix.encoded()) is None:
        pytest.skip("decoded by torch")
    return matrix, kernels(torch.device("cuda", 0), has_float8=encoded.kind == "fp8")


def check_decoded(matrix: Any, products: Any, dtype: torch.dtype) -> None:
    rows, columns = matrix.shape
    wanted = matrix.decoded_rows(0, rows, dtype)
    assert same_bits(matrix.decoded(dtype), wanted)
    for first, last in ((0, rows), (16, rows), (16, rows - 8)):
        if first < last:
            decoded = torch.empty(last - first, columns, dtype=dtype, device="cuda")
            products.decode(matrix.encoded(), first, decoded)
            assert same_bits(decoded, wanted[first:last]), (dtype, first, last)


def check_products(matrix: Any, counts: tuple[int, ...], dtype: torch.dtype, *, biased: bool) -> None:
    """Of so many rows of x; few of them have the bits that they have by themselves."""
    rows, columns = matrix.shape
    decoded, products = matrix.decoded_rows(0, rows, dtype), {}
    x = torch.randn(max(counts), columns, device="cuda").div_(decoded.abs().max()).to(dtype)
    bias = torch.randn(rows).to("cuda", dtype) if biased else None
    wanted = x.double() @ decoded.double().T + (0 if bias is None else bias.double())
    for count in counts:
        products[count] = matrix.apply(x[:count], bias)
        limit = wanted.abs().max() * 2 * torch.finfo(dtype).eps
        assert (products[count].double() - wanted[:count]).abs().max() <= limit, (dtype, count)
    few = [count for count in counts if count <= kernels(x.device, has_float8=False).few_rows(matrix.encoded())]
    most = max(few)
    for count in few:
        assert torch.equal(products[count], products[most][:count]), (dtype, count)
        assert torch.equal(matrix.apply(x[most - count : most], bias), products[most][most - count :]), (dtype, count)
    fast, onto = kernels(x.device, has_float8=False), torch.randn(max(counts), rows, device="cuda").to(dtype)
    for count in counts:
        added = fast.product(matrix.encoded(), x[:count], bias, onto[:count].clone())
        assert torch.equal(added, onto[:count] + products[count]), (dtype, count)


@pytest.mark.parametrize("case", KEPT, ids=lambda case: f"{case.format}-{case.shape}-{case.options}")
@torch.inference_mode()
def test_small_matrices_of_odd_sizes_are_decoded_to_the_same_bits(case: Case, tmp_path: Path) -> None:
    matrix, products = on_gpu(case, tmp_path)
    check_decoded(matrix, products, torch.float32)
    check_products(matrix, (16,), torch.bfloat16, biased=False)


@pytest.mark.parametrize("case", WIDE, ids=lambda case: f"{case.format}-{case.shape}-{case.options}")
@torch.inference_mode()
def test_matrices_are_decoded_to_the_same_bits_and_rows_have_theirs_in_any_company(case: Case, tmp_path: Path) -> None:
    matrix, products = on_gpu(case, tmp_path)
    for dtype, biased in ((torch.bfloat16, True), (torch.float16, False)):
        check_decoded(matrix, products, dtype)
        check_products(matrix, (1, 2, 7, 16, 27, 64, 70), dtype, biased=biased)


@torch.inference_mode()
def test_kernels_that_were_made_before_there_are_bytes_serve_all_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, gpu = wide_integers("pack-quantized", 120, 4608, torch.bfloat16, bits=4, group=128, symmetric=True), "cuda"
    stored = find(tmp_path / "parts", FORMATS[case.format](**case.options), case.shape, case.parts)
    compile_products([(stored, None)], (1, 9, 65), torch.bfloat16, torch.device(gpu, 0))
    monkeypatch.delattr(kernels(torch.device(gpu, 0), has_float8=False), "_make")
    matrix = read(stored, gpu)
    for count in (1, 8, 9, 16, 64, 70):
        assert matrix.apply(torch.zeros(count, case.shape[1], dtype=torch.bfloat16, device=gpu)).shape == (count, 120)
    with pytest.raises(NameError):
        matrix.apply(torch.zeros(1, case.shape[1], dtype=torch.float16, device=gpu))


TOGETHER = [
    wide_integers("pack-quantized", 512, 4608, torch.bfloat16, bits=4, group=128, symmetric=True),
    wide_integers("pack-quantized", 512, 2560, torch.float16, bits=4, group=32, symmetric=False),
    wide_integers("pack-quantized", 512, 2560, torch.bfloat16, bits=8, group=64, symmetric=False),
    wide_floats("transformers FP8", 512, 4464, block=(128, 128)),
    wide_floats("compressed-tensors MXFP4", 512, 4640),
]


@pytest.mark.parametrize("case", TOGETHER, ids=lambda case: f"{case.format}-{case.options}")
@torch.inference_mode()
def test_matrices_that_lie_together_have_the_bits_of_single_products(case: Case, tmp_path: Path) -> None:
    matrix, fast = on_gpu(case, tmp_path)
    encoded = matrix.encoded()
    edges = (0, 256, 384, 512)
    three = []
    for begin, end in itertools.pairwise(edges):
        rows, zeros = end - begin, encoded.zeros
        if isinstance(zeros, torch.Tensor):
            zeros = zeros[begin // encoded.per_zero : end // encoded.per_zero]
        scales = encoded.scales[begin // encoded.block_rows : end // encoded.block_rows]
        shape = (rows, case.shape[1])
        three.append(replace(encoded, shape=shape, numbers=encoded.numbers[begin:end], scales=scales, zeros=zeros))
    for dtype, count in itertools.product((torch.bfloat16, torch.float16), (1, 7, 16, 27, 70)):
        x = torch.randn(count, case.shape[1], device="cuda").mul_(0.01).to(dtype)
        bias = torch.randn(512).to("cuda", dtype)
        for biases in ([None] * 3, [bias[begin:end] for begin, end in itertools.pairwise(edges)]):
            assert fast.runs(three, biases) == [[0, 1, 2]]
            singles = [fast.product(one, x, own) for one, own in zip(three, biases, strict=True)]
            assert all(map(torch.equal, fast.products(three, x, biases), singles)), (dtype, count)
            assert all(map(torch.equal, fast.products(three[::-1], x, biases[::-1]), singles[::-1]))


@torch.inference_mode()
def test_a_product_is_captured_as_a_graph(tmp_path: Path) -> None:
    case = WIDE[1]
    matrix = read(find(tmp_path / "parts", FORMATS[case.format](**case.options), case.shape, case.parts), "cuda")
    for count in (3, 40):
        x, graph = torch.zeros(count, case.shape[1], dtype=torch.bfloat16, device="cuda"), torch.cuda.CUDAGraph()
        matrix.apply(x)
        with torch.cuda.graph(graph):
            captured = matrix.apply(x)
        x.copy_(torch.randn(x.shape))
        graph.replay()
        assert torch.equal(captured, matrix.apply(x))
