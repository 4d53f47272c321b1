"""The gated delta net of all rows of a pass at once: Triton kernels, a fixed number of launches.

The convolution is computed for every row beside the others. Then a program for each sequence, value head and a few
channels of its values goes from token to token, with its part of the matrix in registers: so bits depend on no cut.
"""

import torch
import triton

from pipeline.formats.matrix import Weights
from pipeline.models import delta_kernels
from pipeline.models.delta_net import zeros_for
from pipeline.models.delta_state import DeltaInputs, LayerState
from pipeline.models.layers import DeltaNet
from pipeline.models.pass_rows import Rows, few_rows

VALUES_AT_ONCE, WARPS = 32, 2
"""Channels of a value head, and warps, of a program of the recurrence. Bits depend on both.

At the shape of Qwen3.5-27B an H200 takes 2.1 ms for 2,048 tokens, and 138 us for 64 answers; with 16 channels and one
warp 1.5 ms and 219 us.
"""


def try_out(device: torch.device, dtype: torch.dtype, kind: DeltaNet) -> None:
    """Compile and run the kernels for a layer of this kind. Raises whatever Triton raises."""
    mix(kind, *zeros_for(kind, device, dtype, 2), few_rows(device), 1.0)
    torch.cuda.synchronize(device)


def mix(
    kind: DeltaNet, weights: Weights, inputs: DeltaInputs, state: LayerState, rows: Rows, norm_epsilon: float
) -> torch.Tensor:
    """Return what comes out for each row, before the last projection; zeros where a row has no token."""
    count, group = len(inputs.gates), kind.value_heads // kind.key_heads
    mixed_TW, out_TN = torch.empty_like(inputs.conv), torch.empty_like(inputs.output_gate)
    scalars = torch.empty(count, 2 * kind.value_heads + 3 * kind.key_heads, device=inputs.gates.device)
    shape = {
        "COLUMNS": rows.numbers.stride(0),
        "KEY_HEADS": kind.key_heads,
        "GROUP": group,
        "KEY_DIM": kind.key_dim,
        "VALUE_DIM": kind.value_dim,
        "Q": triton.next_power_of_2(kind.key_dim),
    }
    wide = {
        "KERNEL": kind.kernel,
        "X": triton.next_power_of_2(group * kind.value_dim),
        "G": triton.next_power_of_2(group),
    }
    small = [weights.tensors[short] for short in ("conv", "rates", "rate_biases")]
    kept, stride = state.inputs, state.inputs.stride(0)
    delta_kernels.convolve[(count, kind.key_heads)](
        *(inputs.conv, inputs.gates, *small, kept, rows.numbers, mixed_TW, scalars, stride, kind.key_dim**-0.5),
        **shape,
        **wide,
        enable_fp_fusion=False,
    )
    width = triton.next_power_of_2(kind.value_dim)
    at_once = min(VALUES_AT_ONCE, width)
    delta_kernels.recur[(min(count, len(rows.tables)), kind.value_heads, triton.cdiv(kind.value_dim, at_once))](
        *(mixed_TW, scalars, state.matrices, rows.numbers, out_TN, state.matrices.stride(0)),
        **shape,
        V=at_once,
        num_warps=WARPS,
    )
    delta_kernels.gated_norm[(count, kind.key_heads)](
        *(out_TN, inputs.output_gate, weights.tensors["gated_norm"], inputs.conv, kept, rows.numbers, count),
        *(norm_epsilon, stride),
        **shape,
        **wide,
        V=width,
    )
    return out_TN
