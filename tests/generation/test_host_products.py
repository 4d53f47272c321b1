"""Which experts a CPU multiplies by in one call beside another device, and what it holds of them."""

import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.generation.host_products import HostProducts
from pipeline.models.experts import expert_product
from pipeline.models.feed_forwards import Experts, FeedForward, Routing

grouped_on_cpu = pytest.importorskip("pipeline.models.grouped_on_cpu")
KIND = Experts(count=3, chosen=1, routing=Routing(), expert=FeedForward(size=32))
HIDDEN = 64


def expert() -> Weights:
    shapes = {"gate": (32, HIDDEN), "up": (32, HIDDEN), "down": (HIDDEN, 32)}
    return Weights({}, {short: DenseMatrix(torch.randn(shape).bfloat16() / 8) for short, shape in shapes.items()})


class Catalog:
    """Knows weights by the slot of a message."""

    def __init__(self, each: Sequence[Weights]) -> None:
        self.each = [*each]

    def weights(self, message: Any) -> Weights:
        return self.each[message.at.buffer.index]


def test_an_expert_with_many_rows_is_multiplied_by_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch reads it once for all of them; the kernel would read it for each."""
    grouped: list[tuple[int, int]] = []
    multiply = grouped_on_cpu.GroupedOnCpu.multiply

    def told(self: Any, kind: Any, each: Any, *arguments: Any) -> None:
        grouped.extend((begin, end) for _, begin, end in each)
        multiply(self, kind, each, *arguments)

    monkeypatch.setattr(grouped_on_cpu.GroupedOnCpu, "multiply", told)
    each, few = [expert() for _ in range(3)], grouped_on_cpu.FEW_ROWS
    products = HostProducts(Catalog(each), torch.bfloat16, least_rows=1)  # type: ignore[arg-type]
    counts, messages = [1, few + 1, few], [message(index) for index in range(3)]
    rows_TD, row_P = torch.randn(few + 1, HIDDEN).bfloat16(), torch.arange(sum(counts)) % (few + 1)
    products.multiply(KIND, messages, row_P, counts, rows_TD, output_PD := torch.empty(len(row_P), HIDDEN).bfloat16())
    products.close()
    assert grouped == [(0, 1), (few + 2, 2 * few + 2)]
    for weights, row_R, output_RD in zip(each, row_P.split(counts), output_PD.split(counts), strict=True):
        expected_RD = expert_product(KIND, weights, rows_TD[row_R])
        torch.testing.assert_close(output_RD, expected_RD, rtol=2**-6, atol=2**-6)


def test_what_is_closed_holds_no_weights() -> None:
    """They lie in slots, whose memory is given back then, and the scales of some were copied."""
    products = HostProducts(catalog := Catalog([expert()]), torch.bfloat16, least_rows=1)  # type: ignore[arg-type]
    rows_TD, output_PD = torch.ones(1, HIDDEN).bfloat16(), torch.empty(1, HIDDEN).bfloat16()
    products.multiply(KIND, [message(0)], torch.zeros(1, dtype=torch.int64), [1], rows_TD, output_PD)
    held = weakref.ref(catalog.each[0].matrices["down"].weight_FD)  # type: ignore[attr-defined]
    catalog.each.clear()
    assert held() is not None, "an expert that stays in its slot is not looked at anew"
    products.close()
    assert held() is None


def message(index: int) -> Any:
    return SimpleNamespace(at=SimpleNamespace(buffer=SimpleNamespace(index=index)))
