"""The gated delta net of the tokens of one pass, in place of attention, sequence by sequence.

What comes out for a token must not depend on other requests in the pass, nor on where its prompt is cut into passes. So
the tokens of a prompt are computed in chunks, whole ones always, and each token of an answer by itself. Where a pass
ends inside a chunk, the slot keeps the inputs of its tokens, and the matrix of the last edge; at the end of the prompt
the matrix moves through the last, partial chunk.

Shape letters in names: T tokens of this pass, D hidden, R rows that a slot keeps.
"""

import functools
from collections.abc import Hashable
from types import ModuleType

import torch

from pipeline.formats.matrix import Weights
from pipeline.models.delta_chunks import DeltaRule
from pipeline.models.delta_state import CHUNK, DeltaInputs, LayerState, StateParts
from pipeline.models.layers import DeltaNet
from pipeline.models.pass_rows import Rows, SequenceRows
from pipeline.models.triton_kernels import kernels_of


def mix(
    kind: DeltaNet, weights: Weights, normed_TD: torch.Tensor, state: LayerState, rows: Rows, norm_epsilon: float
) -> torch.Tensor:
    """The mixer, from the normed hidden states to what the last projection, "o", takes, [T, N].

    Reads and changes the slots of the sequences. On a GPU all rows are computed at once. Elsewhere those of sequences
    that have ended get zeros.
    """
    inputs = project(kind, weights, normed_TD)
    return mix_projected(kind, weights, inputs, state, rows, norm_epsilon)


def mix_projected(
    kind: DeltaNet, weights: Weights, inputs: DeltaInputs, state: LayerState, rows: Rows, norm_epsilon: float
) -> torch.Tensor:
    """Return what comes out for what was projected, before the last projection, [T, N]."""
    device, dtype = inputs.gates.device, inputs.gates.dtype
    if kernels := _kernels(device, dtype, kind):
        fused_TN: torch.Tensor = kernels.mix(kind, weights, inputs, state, rows, norm_epsilon)
        return fused_TN
    rule = DeltaRule.of(kind, weights, dtype, norm_epsilon)
    mixed_TN = torch.zeros_like(inputs.output_gate)
    for one in rows.by_sequence():
        if not one.ended():
            own = inputs.rows(one.begin, one.end)
            mix_sequence(rule, own, state, one, mixed_TN[one.begin : one.end])
    return mixed_TN


def zeros_for(
    kind: DeltaNet, device: torch.device, dtype: torch.dtype, count: int
) -> tuple[Weights, DeltaInputs, LayerState]:
    """Return what `mix_projected` takes of a layer and of so many tokens, to try it with; the state has two slots."""
    zeros = functools.partial(torch.zeros, dtype=dtype, device=device)
    parts = StateParts.of(kind, dtype, carries=device.type != "cuda")
    state = parts.view(torch.zeros(2, parts.nbytes, dtype=torch.uint8, device=device))
    sizes = (kind.channels, kind.value_heads * kind.value_dim, 2 * kind.value_heads)
    weights = Weights({spec.short: zeros(spec.shape) for spec in kind.vectors("")}, {})
    return weights, DeltaInputs(*(zeros(count, size) for size in sizes)), state


def launches(kind: DeltaNet, state: LayerState) -> Hashable:
    """Return what the launches of `mix` depend on beside the number of rows; None if on more than can be told."""
    matrices = state.matrices
    return matrices.data_ptr() if _kernels(matrices.device, state.inputs.dtype, kind) else None


@functools.cache
def _kernels(device: torch.device, dtype: torch.dtype, kind: DeltaNet) -> ModuleType | None:
    """Return what computes all rows at once, where this is a GPU for which Triton compiles it."""
    return kernels_of("pipeline.models.fused_delta", device, "delta nets run request by request", dtype, kind)


def scratch_bytes(kind: DeltaNet) -> int:
    """The most memory that it takes beside the rows of a pass: a chunk in fp32, and the weights of the convolution."""
    of_chunk = 5 * (CHUNK + kind.kernel) * kind.channels + 6 * CHUNK * kind.value_heads * kind.value_dim
    return (of_chunk + 2 * kind.kernel * kind.channels) * torch.float32.itemsize


def project(kind: DeltaNet, weights: Weights, normed_TD: torch.Tensor) -> DeltaInputs:
    """Return what tokens bring. In grouped matrices each key head has its rows together, and its value heads'."""
    if not kind.grouped:
        inputs_TW, output_gate_TN, writing_TH, keeping_TH = (
            weights.project(short, normed_TD) for short in ("qkv", "z", "b", "a")
        )
        return DeltaInputs(inputs_TW, output_gate_TN, torch.cat((writing_TH, keeping_TH), 1))
    values = kind.value_heads // kind.key_heads * kind.value_dim
    grouped_TKX = weights.project("qkvz", normed_TD).unflatten(1, (kind.key_heads, -1))
    *parts, output_gates_TKX = grouped_TKX.split((kind.key_dim, kind.key_dim, values, values), dim=2)
    inputs_TW, end = normed_TD.new_empty(len(normed_TD), kind.channels), 0
    for part in parts:
        begin, end = end, end + kind.key_heads * part.shape[2]
        inputs_TW[:, begin:end].unflatten(1, (kind.key_heads, -1)).copy_(part)
    gates_TKX = weights.project("ba", normed_TD).unflatten(1, (kind.key_heads, 2, -1))
    return DeltaInputs(inputs_TW, output_gates_TKX.flatten(1), gates_TKX.transpose(1, 2).flatten(1))


def mix_sequence(
    rule: DeltaRule, new: DeltaInputs, state: LayerState, one: SequenceRows, mixed_TN: torch.Tensor
) -> None:
    """Fill `mixed_TN` with what comes out for the tokens of one sequence, and the slots with what is behind them."""
    snapshots = {one.start + row + 1 - one.begin: slot for row, slot in one.snapshots}
    carried, seen, end = _carried(state, one, one.start), rule.kind.kernel - 1, one.start + len(mixed_TN)
    kept, matrix = state.begin(one.state_read, one.state_write, carried), state.matrices[one.state_write]
    position = one.start - carried
    while position < end:
        size, until = 1, position + 1
        if position < one.prompt_tokens:
            size, until = CHUNK, min(position // CHUNK * CHUNK + CHUNK, one.prompt_tokens, end)
        rows, first = new.behind(kept, position - one.start, size, seen), max(position, one.start)
        rows_CN = rule.compute(rows, until - position, matrix, moves=not _carried(state, one, until))
        mixed_TN[first - one.start : until - one.start] = rows_CN[first - position : until - position]
        if until in snapshots:
            state.matrices[snapshots[until]] = matrix
            state.keep(snapshots[until], new.behind(kept, until - one.start, 0, seen))
        position = until
    carried = _carried(state, one, end)
    state.keep(one.state_write, new.behind(kept, end - one.start - carried, carried, seen))


def _carried(state: LayerState, one: SequenceRows, position: int) -> int:
    """How many of the tokens before a position the matrix does not hold yet."""
    return position % CHUNK if state.carries and position < one.prompt_tokens else 0
