"""The second half of a layer with experts, as functions: choose for all rows, compute one expert, add them up.

No result depends on the order in which experts are computed: each gives rows of its own, which are added by rank.
Letters in names: T tokens of this pass, D hidden, K experts that a token uses, R rows of the pass that use an expert.
"""

import functools
from dataclasses import dataclass
from types import ModuleType

import torch

from pipeline.formats import cpu_compiled
from pipeline.formats.dense import DenseMatrix, joined
from pipeline.formats.matrix import Weights
from pipeline.formats.parts import GATE_UP
from pipeline.models import hyper_connections
from pipeline.models.decoder import entered, feed_forward_channels, gated, normed
from pipeline.models.feed_forwards import Experts
from pipeline.models.layers import Layer
from pipeline.models.ops import rms_norm, sigmoid
from pipeline.models.routing import route
from pipeline.models.triton_kernels import kernels_of

LEAST_ROWS = 16
"""At least so many rows are summed at a time: the fp32 copy of their outputs holds each row once for every rank."""


@dataclass(frozen=True, slots=True)
class RoutedRows:
    """Of each row: the input of its experts, [T, D]; their ids, int64 [T, K]; their weights, fp32 [T, K].

    `beside_TD` is what the half adds to the sum of the experts, as the output of a shared expert, [T, D]; None for
    nothing. `mixing` says how the sum is added to several streams, [T, M].
    """

    input_TD: torch.Tensor
    ids_TK: torch.Tensor
    weights_TK: torch.Tensor
    beside_TD: torch.Tensor | None
    mixing: torch.Tensor | None = None


def choose(
    layer: Layer,
    kind: Experts,
    weights: Weights,
    hidden_TD: torch.Tensor,
    by_formula: bool = False,
    known_TK: torch.Tensor | None = None,
) -> RoutedRows:
    """Norm, router, and the shared expert where there is one. See `activate` for `by_formula`, `route` for `known`."""
    row_TD, mixing = entered(layer, weights, hidden_TD)
    normed_TD, ids_TK, weights_TK = _choice(layer, kind, weights, row_TD, known_TK)
    input_TD = normed_TD if kind.norms is None else normed(layer, weights, "experts_norm", row_TD)
    beside_TD = None
    if kind.shared is not None:
        beside_TD = weights.project("down", feed_forward_channels(kind.shared, weights, normed_TD, by_formula))
        if kind.shared_gated:
            beside_TD.mul_(sigmoid(weights.project("shared_gate", normed_TD)).to(beside_TD.dtype))
        beside_TD = normed(layer, weights, "shared_norm_after", beside_TD)
    return RoutedRows(input_TD, ids_TK, weights_TK, beside_TD, mixing)


def guess(layer: Layer, kind: Experts, weights: Weights, hidden_TD: torch.Tensor) -> torch.Tensor:
    """The ids of the experts that norm and router choose, int64 [T, K]; nothing else is computed."""
    return _choice(layer, kind, weights, entered(layer, weights, hidden_TD)[0], None)[1]


def _choice(
    layer: Layer, kind: Experts, weights: Weights, row_TD: torch.Tensor, known_TK: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the norm gives, [T, D]; then ids and weights as in `RoutedRows`."""
    normed_TD = normed(layer, weights, "norm", row_TD)
    routed_TD = normed_TD if kind.scales is None else _scaled(layer, weights, row_TD)
    return normed_TD, *route(kind, weights, routed_TD, known_TK)


def _scaled(layer: Layer, weights: Weights, hidden_TD: torch.Tensor) -> torch.Tensor:
    """The input of a router with scales, [T, D]."""
    normed_TD = rms_norm(hidden_TD, None, layer.norm_epsilon)
    return normed_TD.mul_(weights.tensors["router_scale"].to(normed_TD.dtype)).mul_(layer.hidden_size**-0.5)


def expert_product(kind: Experts, weights: Weights, input_RD: torch.Tensor, by_formula: bool = False) -> torch.Tensor:
    """What one expert makes of its rows, [R, D]; `weights` are its own.

    Gate and up are multiplied as one matrix where they lie side by side.
    """
    both = _both(weights, input_RD.dtype)
    if both is None or _has_biases(weights):
        between_RF = feed_forward_channels(kind.expert, weights, input_RD, by_formula)
    else:
        gate_RF, up_RF = both.apply(input_RD).chunk(2, dim=1)
        between_RF = gated(kind.expert, gate_RF.contiguous(), up_RF, by_formula)
    return weights.project("down", between_RF)


def _both(weights: Weights, dtype: torch.dtype) -> DenseMatrix | None:
    """Gate and up as one matrix, where they lie side by side."""
    first, second = (weights.matrices.get(short) for short in GATE_UP)
    return joined(first, second, dtype)


def _has_biases(weights: Weights) -> bool:
    return any(weights.bias(short) is not None for short in weights.matrices)


def add_up(
    layer: Layer,
    weights: Weights,
    hidden_TD: torch.Tensor,
    outputs_TKD: torch.Tensor,
    weights_TK: torch.Tensor,
    beside_TD: torch.Tensor | None,
    mixing: torch.Tensor | None = None,
) -> torch.Tensor:
    """Add to `hidden_TD` the weighed outputs of each row's experts, and `beside_TD`; returns `hidden_TD`.

    The weighed outputs are summed in fp32, in the order of their ranks. Each product and each sum is rounded by itself,
    so that no bit depends on which of torch's loops computes it.
    """
    added_TD = normed(layer, weights, "experts_norm_after", _weighed_sum(outputs_TKD, weights_TK))
    if beside_TD is not None:
        added_TD = added_TD.add_(beside_TD)
    if layer.streams is not None and mixing is not None:
        return hyper_connections.leave(layer.streams, mixing, hidden_TD, added_TD)
    added_TD = normed(layer, weights, "norm_after", added_TD)
    if layer.residual_multiplier != 1:
        added_TD.mul_(layer.residual_multiplier)
    hidden_TD.add_(added_TD)
    return hidden_TD.mul_(weights.tensors["scalar"].to(hidden_TD.dtype)) if layer.scalar else hidden_TD


@functools.cache
def grouped_kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The kernels that multiply by many experts at a time on a GPU; None elsewhere."""
    return kernels_of("pipeline.models.grouped_experts", device, "experts are multiplied one by one", dtype)


@functools.cache
def grouped_on_cpu() -> ModuleType | None:
    """The kernels that multiply by many experts at a time on a CPU, in bf16; None where numba is not installed."""
    if cpu_compiled.kernels() is None:
        return None
    from pipeline.models import grouped_on_cpu

    return grouped_on_cpu


def _weighed_sum(outputs_TKD: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    if (kernels := grouped_kernels(outputs_TKD.device, outputs_TKD.dtype)) is not None:
        fused: torch.Tensor = kernels.weighed_sum(outputs_TKD, weights_TK)
        return fused
    rows, ranks, columns = outputs_TKD.shape
    sum_TD, most = outputs_TKD.new_empty(rows, columns), max(LEAST_ROWS, rows // ranks)
    for some in (slice(first, first + most) for first in range(0, rows, most)):
        sum_TD[some] = _sum_of_some(outputs_TKD[some], weights_TK[some])
    return sum_TD


def _sum_of_some(outputs_TKD: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    sum_TD, *others = outputs_TKD.to(torch.float32, copy=True).mul_(weights_TK.unsqueeze(-1)).unbind(1)
    for one_TD in others:
        sum_TD.add_(one_TD)
    return sum_TD
