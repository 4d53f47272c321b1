"""Several residual streams on a GPU: a launch for what a half gets, behind the product, and one that adds to them.

As torch operations they would be 160 and 46. A row has the same bits in whatever company, but not those of torch, which
adds up in another order.

Shape letters in names: T tokens, D hidden, W numbers of all streams, M numbers that mix them.
"""

from collections.abc import Mapping

import torch
import triton

from pipeline.models import stream_kernels
from pipeline.models.streams import BASE, FUNCTION, SCALE, Streams

CHANNELS = 512
"""Channels of a program, of each stream."""


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Compile and run the kernels for a row. Raises whatever Triton raises."""
    kind, size = Streams(count=2, rounds=1, epsilon=1.0), 16
    tensors = {spec.short: torch.zeros(spec.shape, dtype=dtype, device=device) for spec in kind.of_half("", size)}
    hidden_TW = torch.zeros(1, kind.count * size, dtype=dtype, device=device)
    logits_TM = torch.zeros(1, len(tensors[FUNCTION]), device=device)
    row_TD, mixing_TM = enter(kind, tensors, logits_TM, hidden_TW)
    leave(kind, mixing_TM, hidden_TW, row_TD)
    torch.cuda.synchronize(device)


def enter(
    kind: Streams, tensors: Mapping[str, torch.Tensor], logits_TM: torch.Tensor, hidden_TW: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `hyper_connections.enter`, behind the product with the normed streams."""
    rows, size = len(hidden_TW), hidden_TW.shape[1] // kind.count
    row_TD, mixing_TM = hidden_TW.new_empty(rows, size), logits_TM.new_empty(rows, kind.mixed)
    stream_kernels.enter[(rows, triton.cdiv(size, CHANNELS))](
        *(logits_TM, tensors[SCALE], tensors[BASE], hidden_TW, row_TD, mixing_TM),
        *(hidden_TW.stride(0), kind.epsilon),
        ROUNDS=kind.rounds,
        **_settings(kind, size),
    )
    return row_TD, mixing_TM


def leave(kind: Streams, mixing_TM: torch.Tensor, hidden_TW: torch.Tensor, computed_TD: torch.Tensor) -> torch.Tensor:
    """See `hyper_connections.leave`."""
    rows, size = computed_TD.shape
    stream_kernels.leave[(rows, triton.cdiv(size, CHANNELS))](
        *(mixing_TM.contiguous(), hidden_TW, computed_TD.contiguous(), hidden_TW.stride(0)), **_settings(kind, size)
    )
    return hidden_TW


def _settings(kind: Streams, size: int) -> Mapping[str, int | bool]:
    return {
        "COUNT": kind.count,
        "WIDTH": size,
        "S": triton.next_power_of_2(kind.count),
        "J": CHANNELS,
        "enable_fp_fusion": False,
    }
