"""The gated delta net of the tokens of one pass, in place of attention, sequence by sequence.

What comes out for a token must not depend on other requests in the pass, nor on where its prompt is cut into passes. So
the tokens of a prompt are computed in chunks, whole ones always, and each token of an answer by itself. Where a pass
ends inside a chunk, the slot keeps the inputs of its tokens, and the matrix of the last edge; at the end of the prompt
the matrix moves through the last, partial chunk.

Shape letters in names: T tokens of this pass, D hidden, R rows that a slot keeps.
"""

import torch

from pipeline.formats.matrix import Weights
from pipeline.models.delta_chunks import DeltaInputs, DeltaRule
from pipeline.models.delta_state import CHUNK, LayerState
from pipeline.models.layers import DeltaNet
from pipeline.models.pass_rows import Rows, SequenceRows


def mix(
    kind: DeltaNet, weights: Weights, normed_TD: torch.Tensor, state: LayerState, rows: Rows, norm_epsilon: float
) -> torch.Tensor:
    """The whole mixer, from the normed hidden states to what is added to them, [T, D].

    Reads and changes the slots of the sequences. Rows of sequences that have ended get zeros.
    """
    inputs = project(kind, weights, normed_TD)
    rule = DeltaRule.of(kind, weights, normed_TD.dtype, norm_epsilon)
    mixed_TN = torch.zeros_like(inputs.output_gate)
    for one in rows.by_sequence():
        if not one.ended():
            span = slice(one.begin, one.end)
            own = DeltaInputs(inputs.conv[span], inputs.output_gate[span], inputs.gates[span])
            _mix_sequence(rule, own, state, one, mixed_TN[span])
    return weights.project("out", mixed_TN)


def project(kind: DeltaNet, weights: Weights, normed_TD: torch.Tensor) -> DeltaInputs:
    """What the tokens bring. Where matrices are grouped, each key head has its rows together, and its value heads'."""
    if not kind.grouped:
        conv_TW, output_gate_TN, writing_TH, keeping_TH = (
            weights.project(short, normed_TD) for short in ("qkv", "z", "b", "a")
        )
        return DeltaInputs(conv_TW, output_gate_TN, torch.cat((writing_TH, keeping_TH), 1))
    values = kind.value_heads // kind.key_heads * kind.value_dim
    grouped_TKX = weights.project("qkvz", normed_TD).unflatten(1, (kind.key_heads, -1))
    parts = grouped_TKX.split((kind.key_dim, kind.key_dim, values, values), dim=2)
    q_TN, k_TN, v_TN, output_gate_TN = (part.flatten(1) for part in parts)
    gates_TKX = weights.project("ba", normed_TD).unflatten(1, (kind.key_heads, 2, -1))
    return DeltaInputs(torch.cat((q_TN, k_TN, v_TN), 1), output_gate_TN, gates_TKX.transpose(1, 2).flatten(1))


def _mix_sequence(
    rule: DeltaRule, new: DeltaInputs, state: LayerState, one: SequenceRows, mixed_TN: torch.Tensor
) -> None:
    """Fill `mixed_TN` with what comes out for the tokens of one sequence, and its slot with what follows."""
    matrix = state.matrices[one.state_write]
    if one.state_read < 0:
        matrix.zero_()
    elif one.state_read != one.state_write:
        matrix.copy_(state.matrices[one.state_read])
    kept = KeptInputs.of(rule.kind, state, one, new)
    end, edges = one.start + len(mixed_TN), dict(one.snapshots)
    position = one.start - kept.carried
    while position < end:
        if position < one.prompt_tokens:
            size, edge = CHUNK, min(position // CHUNK * CHUNK + CHUNK, one.prompt_tokens)
        else:
            size, edge = 1, position + 1
        until = min(edge, end)
        moves = until == edge or not state.carries
        rows_CN = rule.compute(kept.rows(position, until, size), until - position, matrix, moves=moves)
        first = max(position, one.start)
        mixed_TN[first - one.start : until - one.start] = rows_CN[first - position : until - position]
        ...
