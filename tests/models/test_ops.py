"""The small operations against transformers, bit by bit."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.cases import cases
from torch.nn import functional
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from pipeline.formats.dense import linear
from pipeline.models.feed_forwards import Activation, Clamp
from pipeline.models.layers import NormStyle
from pipeline.models.ops import activate, clamped_gate, gate, rms_norm, sigmoid_gate

ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu2": lambda x: functional.relu(x).square(),
}
CLAMP = Clamp(limit=2.5, slope=1.3, offset=1.0)
ROUNDED = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""What differs where transformers rounds every step of the clamped gate."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("style", "norm"), [("plain", LlamaRMSNorm), ("wide", Olmo2RMSNorm), ("plus_one", Gemma2RMSNorm)]
)
def test_rms_norm_has_the_bits_of_transformers(style: NormStyle, norm: Any, dtype: torch.dtype) -> None:
    x = torch.randn(3, 40).to(dtype) * 50
    reference = norm(40, eps=1e-5).to(dtype)
    reference.weight.data.normal_()
    normed = rms_norm(x, reference.weight.data, 1e-5, style)
    assert normed.dtype == dtype
    assert torch.equal(normed, reference(x).detach())
    bare = Gemma4RMSNorm(40, eps=1e-5, with_scale=False)(x)  # which takes the root in another way
    torch.testing.assert_close(rms_norm(x, None, 1e-5, style), bare)


THREADS = (1, 2, 3, 5)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """So many threads compute on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def assert_rows_stand_alone(
    operation: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype, size: int, fewest: int = 1
) -> None:
    """The bits of a row are the same wherever it stands, and among however many others."""
    torch.manual_seed(size)
    row, others = (torch.randn(count, size).to(dtype) for count in (1, 100))
    expected = operation(torch.cat((row, others[: fewest - 1])))[0]
    for count in (fewest, 3, 4, 5, 9, 17, 32, 33, 100):
        for place in {0, count // 2, count - 1}:
            rows = others[:count].clone()
            rows[place] = row
            assert torch.equal(operation(rows)[place], expected), f"row {place} of {count}"


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("threads", "dtype", "shape"),
    cases(THREADS, DTYPES, [(48, 104), (259, 48), (64, 4096), (512, 2048)]),
    indirect=["threads"],
    ids=str,
)
def test_two_rows_or_more_of_a_product_do_not_depend_on_how_many_they_are(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    rows, size = shape
    weight = torch.randn(rows, size).to(dtype) / size**0.5
    assert_rows_stand_alone(lambda x: linear(x, weight), dtype, size, fewest=2)
    stored_transposed = weight.T.contiguous()
    assert_rows_stand_alone(lambda x: linear(x, stored_transposed.T), dtype, size, fewest=2)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("threads", "dtype", "size"), cases(THREADS, DTYPES, [104, 640, 2050, 11008]), indirect=["threads"], ids=str
)
def test_a_row_of_a_norm_or_of_an_activation_does_not_depend_on_the_others(size: int, dtype: torch.dtype) -> None:
    weight = torch.randn(size).to(dtype)
    assert_rows_stand_alone(lambda x: rms_norm(x, weight, 1e-5), dtype, size)
    assert_rows_stand_alone(lambda x: rms_norm(x, weight, 1e-5, "plus_one"), dtype, size)
    for activation in ACTIVATIONS:
        assert_rows_stand_alone(lambda x, one=activation: activate(x, one, by_formula=True), dtype, size)
        if dtype is torch.float32:
            assert_rows_stand_alone(lambda x, one=activation: activate(x, one, by_formula=False), dtype, size)
    assert_rows_stand_alone(lambda x: sigmoid_gate(torch.ones_like(x), x.clone()), dtype, size)
    assert_rows_stand_alone(lambda x: clamped_gate(x.clone(), x, CLAMP), dtype, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("by_formula", [True, False])
def test_activations_are_those_of_torch(by_formula: bool, dtype: torch.dtype) -> None:
    x = torch.cat((torch.randn(1000) * 4, torch.tensor([-1e4, -100.0, -88.0, 0.0, 100.0, 1e4]))).to(dtype)
    for activation, theirs in ACTIVATIONS.items():
        torch.testing.assert_close(activate(x.clone(), activation, by_formula=by_formula), theirs(x))
        gated = gate(x.clone(), x, activation, by_formula=by_formula)
        torch.testing.assert_close(gated, theirs(x) * x)
    torch.testing.assert_close(sigmoid_gate(x.clone(), x.clone()), x * torch.sigmoid(x))
    theirs = GptOssExperts._apply_gate(SimpleNamespace(limit=CLAMP.limit, alpha=CLAMP.slope), torch.stack((x, -x), 1))
    torch.testing.assert_close(clamped_gate(x.clone(), -x, CLAMP), theirs[:, 0], rtol=ROUNDED[dtype], atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 2048), (64, 32)])
def test_a_small_matrix_gives_a_row_the_same_bits_among_two_and_more(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight_FD, x_TD = torch.randn(shape).to(torch.bfloat16), torch.randn(12_000, shape[1]).to(torch.bfloat16)
    pairs = torch.cat([linear(x_TD[at : at + 2], weight_FD) for at in range(0, len(x_TD), 2)])
    assert torch.equal(linear(x_TD, weight_FD), pairs)
