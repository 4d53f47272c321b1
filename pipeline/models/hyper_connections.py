"""What several residual streams are summed up to before a half of a layer, and how its result is added to them.

In fp32 inside; each product and each sum is rounded by itself, so that no bit depends on how many tokens there are. On
a GPU that is one kernel before a half and one behind it (`fused_streams`), where Triton can make them.
Source: arXiv 2512.24880, with the Sinkhorn rounds in the order in which DeepSeek-V4 has them.

Shape letters in names: T tokens, D hidden, S streams, W numbers of all streams, M numbers that mix them.
"""

import functools
from collections.abc import Mapping
from types import ModuleType

import torch

from pipeline.formats.dense import linear
from pipeline.models.ops import rms_norm, sigmoid
from pipeline.models.streams import BASE, FUNCTION, SCALE, Streams
from pipeline.models.triton_kernels import kernels_of

IN_ORDER = 4
"""Up to this many numbers torch adds up in order, however many sums there are."""


def summed_up(
    kind: Streams, tensors: Mapping[str, torch.Tensor], hidden_TW: torch.Tensor, norm_epsilon: float
) -> torch.Tensor:
    """The row that the last norm gets, [T, D]."""
    logits_TS = _logits(tensors, hidden_TW, norm_epsilon)
    weights_TS = logits_TS.mul_(tensors[SCALE].float()).add_(tensors[BASE].float())
    return _sum(kind, sigmoid(weights_TS).add_(kind.epsilon), hidden_TW)


def enter(
    kind: Streams, tensors: Mapping[str, torch.Tensor], hidden_TW: torch.Tensor, norm_epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The row that a half gets, [T, D], and what `leave` needs, fp32 [T, M]."""
    count = kind.count
    logits_TM = _logits(tensors, hidden_TW, norm_epsilon)
    if kernels := _kernels(hidden_TW.device, hidden_TW.dtype):
        fused: tuple[torch.Tensor, torch.Tensor] = kernels.enter(kind, tensors, logits_TM, hidden_TW)
        return fused
    parts = (count, count, count**2)
    scaled = [
        logits.mul(scale).add_(base)
        for logits, scale, base in zip(
            logits_TM.split(parts, dim=1),
            tensors[SCALE].float().unbind(),
            tensors[BASE].float().split(parts),
            strict=True,
        )
    ]
    before_TS, after_TS = sigmoid(scaled[0]).add_(kind.epsilon), sigmoid(scaled[1]).mul_(2)
    mixed_TSS = _doubly_stochastic(kind, scaled[2].unflatten(1, (count, count)))
    return _sum(kind, before_TS, hidden_TW), torch.cat((after_TS, mixed_TSS.flatten(1)), dim=1)


def leave(kind: Streams, mixing_TM: torch.Tensor, hidden_TW: torch.Tensor, computed_TD: torch.Tensor) -> torch.Tensor:
    """Mix the streams, in place, and add to each what a half has computed; returns `hidden_TW`."""
    if kernels := _kernels(hidden_TW.device, hidden_TW.dtype):
        fused: torch.Tensor = kernels.leave(kind, mixing_TM, hidden_TW, computed_TD)
        return fused
    after_TS, mixed_TSS = mixing_TM[:, : kind.count], mixing_TM[:, kind.count :].unflatten(1, (kind.count, -1))
    streams = [stream_TD.float() for stream_TD in hidden_TW.chunk(kind.count, dim=1)]
    computed32_TD, new = computed_TD.float(), []
    for index in range(kind.count):
        into_TD = computed32_TD * after_TS[:, index : index + 1]
        for stream, stream_TD in enumerate(streams):
            into_TD.add_(stream_TD * mixed_TSS[:, stream, index : index + 1])
        new.append(into_TD)
    for stream_TD, new_TD in zip(hidden_TW.chunk(kind.count, dim=1), new, strict=True):
        stream_TD.copy_(new_TD)
    return hidden_TW


@functools.cache
def _kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    return kernels_of("pipeline.models.fused_streams", device, "residual streams are many operations each", dtype)


def _logits(tensors: Mapping[str, torch.Tensor], hidden_TW: torch.Tensor, norm_epsilon: float) -> torch.Tensor:
    logits_TM: torch.Tensor = linear(rms_norm(hidden_TW.float(), None, norm_epsilon), tensors[FUNCTION])
    return logits_TM


def _sum(kind: Streams, weights_TS: torch.Tensor, hidden_TW: torch.Tensor) -> torch.Tensor:
    first_TD, *others = hidden_TW.chunk(kind.count, dim=1)
    sum_TD = first_TD.float() * weights_TS[:, :1]
    for index, stream_TD in enumerate(others, 1):
        sum_TD.add_(stream_TD.float() * weights_TS[:, index : index + 1])
    return sum_TD.to(hidden_TW.dtype)


def _doubly_stochastic(kind: Streams, logits_TSS: torch.Tensor) -> torch.Tensor:
    """Rows and columns are divided by their sums in turns, the columns last."""
    mixed_TSS = logits_TSS.sub(logits_TSS.amax(-1, keepdim=True)).exp_()
    mixed_TSS = mixed_TSS.div_(_total(mixed_TSS, -1)).add_(kind.epsilon)
    for index in range(2 * kind.rounds - 1):
        mixed_TSS.div_(_total(mixed_TSS, -1 if index % 2 else -2).add_(kind.epsilon))
    return mixed_TSS


def _total(mixed_TSS: torch.Tensor, axis: int) -> torch.Tensor:
    """The sums along an axis, one number after the other, as torch adds up to four."""
    if mixed_TSS.shape[axis] <= IN_ORDER:
        return mixed_TSS.sum(axis, keepdim=True)
    first, *others = mixed_TSS.split(1, dim=axis)
    total: torch.Tensor = first.clone()
    for one in others:
        total.add_(one)
    return total
