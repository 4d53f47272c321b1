"""Experts with few rows each on a GPU: two launches for all that are there, however many, and one for their sum.

By themselves they would take ten launches each, and a pass would wait for the host. A row has the same bits in whatever
company of rows and experts, but not those of single products, which add up in another order.

Letters in names: T tokens of this pass, D hidden, K experts that a token uses, P places in the order of experts.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.encoded import Encoded
from pipeline.formats.matrix import Matrix, Weights
from pipeline.models import grouped_kernels
from pipeline.models.feed_forwards import FeedForward

TILE_ROWS = 16
"""Rows of one expert that a program multiplies by; the least that tensor cores take."""
MANY_ROWS = 64
"""An expert with more rows is multiplied by itself, as fast as its matrices are read."""
LANGUAGE = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.int32: tl.int32,
}


@dataclass(frozen=True, slots=True)
class Stored:
    """What kernels are compiled for, or called with, beside addresses: the same for all experts of a launch."""

    kind: Literal["dense", "fp8", "int4"]
    shape: tuple[int, int]
    numbers: torch.dtype
    scales: torch.dtype
    rounds_to: torch.dtype
    scale_step: int = 0
    group: int = 1
    block_rows: int = 1


@dataclass(frozen=True, slots=True)
class Places:
    """Where the numbers and scales of gate, up and down lie in a slot, in bytes, and how these are stored."""

    offsets: tuple[int, ...]
    wide: Stored
    down: Stored


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Compile and run the kernels for a few items. Raises whatever Triton raises."""
    x_TD = torch.zeros(2, 32, dtype=dtype, device=device)
    matrix = DenseMatrix(torch.zeros(32, 32, dtype=dtype, device=device))
    found = places(FeedForward(size=32), Weights({}, dict.fromkeys(("gate", "up", "down"), matrix)), 0)
    order, between = torch.arange(2, device=device), torch.zeros_like(x_TD)
    if found is not None:
        multiply(FeedForward(size=32), found, [(found.offsets, 0, 2)], x_TD, order, 1, between, x_TD)
    weighed_sum(x_TD.view(2, 1, 32), torch.zeros(2, 1, device=device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def places(kind: FeedForward, weights: Weights, slot: int) -> Places | None:
    """Where an expert lies in the slot at this address; None where the kernels do not know how it is stored."""
    if not kind.gated or kind.fused or kind.clamp is not None or weights.tensors.keys() & {"gate_bias", "down_bias"}:
        return None
    found = [_stored(weights.matrices[short]) for short in ("gate", "up", "down")]
    (gate, up, down) = (one and one[0] for one in found)
    if gate is None or down is None or gate != up:
        return None
    return Places(tuple(address - slot for one in found if one for address in one[1]), gate, down)


def multiply(
    kind: FeedForward,
    stored: Places,
    runs: Sequence[tuple[Sequence[int], int, int]],
    input_TD: torch.Tensor,
    order_P: torch.Tensor,
    chosen: int,
    between_PF: torch.Tensor,
    output_PD: torch.Tensor,
) -> None:
    """Multiply by experts, each with its addresses and the places in the order where its rows begin and end.

    Place p of the order is of rank `order_P[p] % chosen` of row `order_P[p] // chosen`, and row `order_P[p]` of the
    output has its result. `between_PF` is memory for what comes between the products.
    """
    lines = [
        [begin, min(last - begin, TILE_ROWS), *addresses]
        for addresses, first, last in runs
        for begin in range(first, last, TILE_ROWS)
    ]
    table = torch.tensor(lines, dtype=torch.int64).to(input_TD.device, non_blocking=True)
    wide, down = stored.wide, stored.down
    rows, columns = wide.shape
    settings = _settings(wide, input_TD.dtype)
    grid = (triton.cdiv(rows, settings["F"]), len(lines))
    grouped_kernels.channels[grid](
        *(input_TD, order_P, table, between_PF, chosen, rows, columns),
        *(wide.scale_step, wide.group, wide.block_rows),
        ACTIVATION=kind.activation,
        R=TILE_ROWS,
        **settings,
    )
    rows, columns = down.shape
    settings = _settings(down, input_TD.dtype)
    grid = (triton.cdiv(rows, settings["F"]), len(lines))
    grouped_kernels.down[grid](
        *(between_PF, order_P, table, output_PD, rows, columns),
        *(down.scale_step, down.group, down.block_rows),
        R=TILE_ROWS,
        **settings,
    )


def weighed_sum(outputs_TKD: torch.Tensor, shares_TK: torch.Tensor) -> torch.Tensor:
    """What experts gave to each row, times their shares, added up from rank to rank: [T, D]."""
    rows, chosen, columns = outputs_TKD.shape
    sum_TD, items = outputs_TKD.new_empty(rows, columns), min(1024, triton.next_power_of_2(columns))
    grouped_kernels.weighed_sum[(rows, triton.cdiv(columns, items))](
        outputs_TKD, shares_TK, sum_TD, chosen, columns, D=items, enable_fp_fusion=False
    )
    return sum_TD


@functools.cache
def _settings(stored: Stored, dtype: torch.dtype) -> Mapping[str, Any]:
    wide = dtype is torch.float32
    columns = 64 if wide else 128
    return {
        "KIND": stored.kind,
        "NUMBERS": LANGUAGE[stored.numbers],
        "SCALES": LANGUAGE[stored.scales],
        "ROUNDS": LANGUAGE[stored.rounds_to],
        "F": 32,
        "D": columns,
        "WHOLE": stored.group % columns == 0,
        "num_warps": 4,
        "num_stages": 2 if wide else 4,
        "enable_fp_fusion": False,
    }


def _stored(matrix: Matrix) -> tuple[Stored, tuple[int, int]] | None:
    """How a matrix is stored, and the addresses of its numbers and scales."""
    if isinstance(matrix, DenseMatrix):
        weight_FD = matrix.weight_FD
        if weight_FD.dtype not in LANGUAGE or not weight_FD.is_contiguous():
            return None
        rows, columns = weight_FD.shape
        dtype = weight_FD.dtype
        return Stored("dense", (rows, columns), dtype, dtype, dtype), (weight_FD.data_ptr(), 0)
    encoded: Encoded | None = getattr(matrix, "encoded", lambda: None)()
    if encoded is None or encoded.order is not None or encoded.scaled or encoded.numbers.stride(1) != 1:
        return None
    scales, per_word = encoded.scales, 4 if encoded.kind == "fp8" else 8
    whole = encoded.numbers.stride(0) * per_word == encoded.shape[1]
    if not whole or scales.dtype not in LANGUAGE or (scales.shape[1] > 1 and scales.stride(1) != 1):
        return None
    if encoded.kind == "int4" and encoded.zeros != 8 if isinstance(encoded.zeros, int) else True:
        return None
    if encoded.kind not in ("fp8", "int4"):
        return None
    numbers = torch.float8_e4m3fn if encoded.kind == "fp8" else torch.int32
    said = (numbers, scales.dtype, encoded.rounds_to, scales.stride(0), encoded.group, encoded.block_rows)
    return Stored(encoded.kind, encoded.shape, *said), (encoded.numbers.data_ptr(), scales.data_ptr())
