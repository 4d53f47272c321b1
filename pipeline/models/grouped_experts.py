"""Experts with few rows each on a GPU: two launches for all that are there, however many, and one for their sum.

By themselves they would take ten launches each, and a pass would wait for the host. A row has the same bits in whatever
company of rows and experts, but not those of single products, which add up in another order.

Letters in names: T tokens of this pass, D hidden, K experts that a token uses, P places in the order of experts, C
tiles of a table, each a line of L numbers.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.models import grouped_kernels
from pipeline.models.expert_places import Places, Stored, places
from pipeline.models.feed_forwards import FeedForward

FEW_TILES = 8
"""The lines in the table of a launch that is recorded; fewer experts leave some of them empty."""
LINE_BYTES = grouped_kernels.LINE.value * torch.int64.itemsize
TILE_ROWS = 16
"""Rows of one expert that a program multiplies by; the least that tensor cores take."""
MANY_ROWS = 64
"""An expert with more rows is multiplied by itself, as fast as its matrices are read."""
LANGUAGE: Mapping[torch.dtype | None, Any] = {
    None: None,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.int32: tl.int32,
    torch.uint8: tl.uint8,
}


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
    table_CL = torch.tensor(tiles(runs), dtype=torch.int64).to(input_TD.device, non_blocking=True)
    multiply_tiles(kind, stored.wide, stored.down, table_CL, input_TD, order_P, chosen, between_PF, output_PD)


def tiles(runs: Sequence[tuple[Sequence[int], int, int]]) -> list[list[int]]:
    """The lines of the table, of `LINE` numbers each."""
    return [
        [begin, min(last - begin, TILE_ROWS), *addresses]
        for addresses, first, last in runs
        for begin in range(first, last, TILE_ROWS)
    ]


def multiply_tiles(
    kind: FeedForward,
    wide: Stored,
    down: Stored,
    table_CL: torch.Tensor,
    input_TD: torch.Tensor,
    order_P: torch.Tensor,
    chosen: int,
    between_PF: torch.Tensor,
    output_PD: torch.Tensor,
) -> None:
    """Do that by a table of C tiles. Of one without rows nothing else counts."""
    columns, settings = wide.shape[1], _settings(wide, input_TD.dtype)
    grid = (triton.cdiv(kind.size, settings["F"]), len(table_CL))
    given = (input_TD, order_P, table_CL, between_PF, chosen, kind.size, columns, *_steps(wide))
    bounds = (0.0, 0.0, 0.0) if (clamp := kind.clamp) is None else (clamp.limit, clamp.slope, clamp.offset)
    if kind.interleaved:
        bias = LANGUAGE[wide.bias]
        grouped_kernels.channels_in_turns[grid](*given, *bounds, BIAS=bias, R=TILE_ROWS, **settings)
    else:
        activation = kind.activation if clamp is None else None
        grouped_kernels.channels[grid](*given, *bounds, ACTIVATION=activation, R=TILE_ROWS, **settings)
    rows, columns = down.shape
    settings = _settings(down, input_TD.dtype)
    grid = (triton.cdiv(rows, settings["F"]), len(table_CL))
    given = (between_PF, order_P, table_CL, output_PD, rows, columns, *_steps(down))
    grouped_kernels.down[grid](*given, BIAS=LANGUAGE[down.bias], R=TILE_ROWS, **settings)


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
        "GROUPS": 1 if stored.group % columns == 0 else 0 if columns % stored.group else columns // stored.group,
        "num_warps": 4,
        "num_stages": 2 if wide else 4,
        "enable_fp_fusion": False,
    }


def _steps(stored: Stored) -> tuple[int, ...]:
    return stored.row_step, stored.column_step, stored.scale_step, stored.group, stored.block_rows
