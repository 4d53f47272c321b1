"""Attention to a window and to compressed entries (DeepSeek-V4), of the tokens of one pass, sequence by sequence.

As with other attention, what comes out for a token follows from its position alone: the tokens of a prompt are computed
in whole cells, each token of an answer by itself.

Shape letters in names: T tokens of this pass, D hidden, C positions of a cell, S keys and entries, N heads, H channels
of a key, A of all heads, R rank of the latent of queries, E entries, K chosen ones, X heads of the index, I channels of
its keys.
"""

import functools
from dataclasses import dataclass, replace

import torch

from pipeline.formats.decoding import projections
from pipeline.formats.matrix import Weights
from pipeline.models.attention import CPU_CELL, LayerKV
from pipeline.models.compressed import GROUPED, CompressedAttention
from pipeline.models.compressor import CompressedRows
from pipeline.models.formula_attention import attend_by_formula
from pipeline.models.ops import rms_norm, turn_last
from pipeline.models.pass_rows import Rows, SequenceRows
from pipeline.models.ropes import Rope
from pipeline.models.rotary import Rotary, rotary
from pipeline.models.sparse_attention import chosen_positions, filled, steps

FP32_BYTES = torch.float32.itemsize


@dataclass(frozen=True, slots=True)
class _Queries:
    """Those of tokens, [T, N, H], and to choose entries by, those of the index, [T, X, I], and weights, fp32 [T, X]."""

    heads: torch.Tensor
    index: torch.Tensor | None = None
    weights: torch.Tensor | None = None


def mix(
    kind: CompressedAttention, weights: Weights, normed_TD: torch.Tensor, turn: Rotary, kv: LayerKV, rows: Rows
) -> torch.Tensor:
    """The mixer, from the normed hidden states to what the last projection, "o", takes, [T, groups * rank]."""
    latent_TR, kv_TH = projections(weights, ("q_a", "kv"), normed_TD)
    latent_TR = _norm(kind, weights, "q_a_norm", latent_TR)
    keys_T1H = turn_last(_norm(kind, weights, "kv_norm", kv_TH).unsqueeze(1), turn)
    kv.write(rows, keys_T1H, keys_T1H)
    _compress(kind, weights, normed_TD, kv, [one for one in rows.by_sequence() if not one.ended()])
    queries = _queries(kind, weights, normed_TD, latent_TR, turn)
    mixed = [_attend(kind, queries, kv, one, weights.tensors["sinks"]) for one in rows.by_sequence()]
    mixed_TA = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    del queries, mixed  # they are large
    back = Rotary(turn.cos, -turn.sin, None, turn.interleaved)
    turned_TNH = turn_last(mixed_TA.unflatten(1, (kind.heads, -1)), back)
    groups = enumerate(turned_TNH.unflatten(1, (kind.groups, -1)).flatten(2).unbind(1))
    return torch.cat([weights.project(f"{GROUPED}.{index}", one_TA.contiguous()) for index, one_TA in groups], dim=1)


def scratch_bytes(kind: CompressedAttention, context_tokens: int) -> int:
    """The most memory that it takes for a context, beside the rows of a pass: keys, entries, and scores of a cell."""
    keys = context_tokens + CPU_CELL
    entries = {name: context_tokens // one.rate + CPU_CELL for name, one in kind.compressors.items()}
    read = (
        keys * kind.head_dim * 2 + sum(count * kind.compressors[name].channels for name, count in entries.items()) * 2
    )
    seen = (kind.window or 0) + CPU_CELL + entries.get("entry", 0)
    scores = CPU_CELL * seen * (kind.heads + 2) + seen * kind.head_dim
    chosen = entries.get("index", 0) * CPU_CELL * (kind.index_heads + 2)
    return (read + scores + chosen) * FP32_BYTES


def _compress(
    kind: CompressedAttention, weights: Weights, normed_TD: torch.Tensor, kv: LayerKV, sequences: list[SequenceRows]
) -> None:
    """Add the tokens to what is kept of their sequences: of those of which a single one comes, all at once."""
    answers, prompts = list[SequenceRows](), list[SequenceRows]()
    for one in sequences:
        (answers if one.start and one.end == one.begin + 1 else prompts).append(one)
    for name, kept in _kept(kind, kv).items():
        values_TP, gates_TP = projections(weights, (f"{name}_kv", f"{name}_gate"), normed_TD)
        finish = functools.partial(_entries, kind, weights, name)
        bias_RP = weights.tensors[f"{name}_bias"]
        for one in prompts:
            kept.add(values_TP, gates_TP, bias_RP, one, finish)
        if answers:
            kept.add_answers(values_TP, gates_TP, bias_RP, answers, finish)


def _queries(
    kind: CompressedAttention, weights: Weights, normed_TD: torch.Tensor, latent_TR: torch.Tensor, turn: Rotary
) -> _Queries:
    q_TNH = rms_norm(weights.project("q_b", latent_TR).unflatten(1, (kind.heads, -1)), None, kind.norm_epsilon)
    queries = _Queries(turn_last(q_TNH, turn))
    if kind.index is None:
        return queries
    index_TXI = weights.project("index_q", latent_TR).unflatten(1, (kind.index_heads, -1))
    scale = (kind.index_heads * kind.index.channels) ** -0.5
    of_heads_TX = weights.project("index_weights", normed_TD).float().mul_(scale)
    return replace(queries, index=turn_last(index_TXI, turn), weights=of_heads_TX)


def _kept(kind: CompressedAttention, kv: LayerKV) -> dict[str, CompressedRows]:
    """What is kept in blocks by each compressor."""
    positions, parts = kv.memory.shape[2], iter(kv.beside)
    return {name: CompressedRows(one, positions, next(parts), next(parts)) for name, one in kind.compressors.items()}


def _norm(kind: CompressedAttention, weights: Weights, short: str, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x.contiguous(), weights.tensors[short], kind.norm_epsilon, "wide")


def _entries(
    kind: CompressedAttention, weights: Weights, name: str, means_EC: torch.Tensor, positions_E: torch.Tensor
) -> torch.Tensor:
    """Means with their norm, turned as the first token of their window."""
    normed_EC = _norm(kind, weights, f"{name}_norm", means_EC)
    rope: Rope | None = kind.rope
    return normed_EC if rope is None else turn_last(normed_EC.unsqueeze(1), rotary(rope, positions_E)).squeeze(1)


def _attend(
    kind: CompressedAttention, queries: _Queries, kv: LayerKV, one: SequenceRows, sinks_N: torch.Tensor
) -> torch.Tensor:
    """Attend with the rows of one sequence, [T, N * H]; rows of a sequence that has ended are zeros."""
    if one.ended():
        return queries.heads.new_zeros(one.end - one.begin, kind.heads * kind.head_dim)
    end, window = one.start + one.end - one.begin, kind.window or 1
    every = [*steps(one.start, end, one.prompt_tokens)]
    lowest = every[0][0] // every[0][2] * every[0][2] + 1 - window
    until = max(begin // cell * cell + cell for begin, _, cell in every)
    keys_SH = kv.read_filled(one.blocks_B, max(lowest, 0), end, max(-lowest, 0), until - end)[0].squeeze(1).float()
    read = {
        name: kept.read(one.blocks_B, end // kept.kind.rate, until // kept.kind.rate)
        for name, kept in _kept(kind, kv).items()
    }
    mixed = []
    for begin, last, cell in every:
        first, device = begin // cell * cell, keys_SH.device
        rows, around = (
            slice(one.begin + begin - one.start, one.begin + last - one.start),
            (begin - first, first + cell - last),
        )
        # A token of an answer sees all of its window, once that is full, and all entries that there are.
        visible_CS = None if cell == 1 and first + 1 >= window else _in_window(first, cell, window, device)
        looked_SH = keys_SH[first + 1 - window - lowest : first + cell - lowest]
        if kind.compressor is not None:
            entries_EH = read["entry"][: (first + cell) // kind.compressor.rate]
            visible_CE = None if visible_CS is None else _complete(first, cell, kind.compressor.rate, device)
            if kind.chosen is not None and len(entries_EH) > kind.chosen:
                chosen_CK = _chosen(kind, queries, rows, around, read["index"][: len(entries_EH)], visible_CE)
                if cell == 1:
                    entries_EH = entries_EH[chosen_CK[0]]
                    visible_CE = None if visible_CE is None else visible_CE[:, : kind.chosen]
                elif visible_CE is not None:
                    visible_CE &= torch.zeros_like(visible_CE).scatter_(1, chosen_CK, True)
            looked_SH = torch.cat((looked_SH, entries_EH))
            if visible_CS is not None and visible_CE is not None:
                visible_CS = torch.cat((visible_CS, visible_CE), dim=1)
        looked_S1H, q_CNH = looked_SH.unsqueeze(1), filled(queries.heads[rows], around)
        mixed_CA = attend_by_formula(q_CNH, looked_S1H, looked_S1H, kind, sinks_N, visible_CS)
        mixed.append(mixed_CA[begin - first : last - first])
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _in_window(first: int, cell: int, window: int, device: torch.device) -> torch.Tensor:
    """Which of the keys from the first one's window on these tokens see, [C, C + window - 1]."""
    positions_C1 = torch.arange(first, first + cell, device=device).unsqueeze(1)
    seen_S = torch.arange(first + 1 - window, first + cell, device=device)
    return (seen_S >= 0) & (seen_S <= positions_C1) & (seen_S > positions_C1 - window)


def _complete(first: int, cell: int, rate: int, device: torch.device) -> torch.Tensor:
    """Which entries these tokens see, [C, E]: those whose last token comes no later."""
    complete_C1 = (torch.arange(first, first + cell, device=device).unsqueeze(1) + 1) // rate
    return torch.arange((first + cell) // rate, device=device) < complete_C1


def _chosen(
    kind: CompressedAttention,
    queries: _Queries,
    rows: slice,
    around: tuple[int, int],
    index_EI: torch.Tensor,
    visible_CE: torch.Tensor | None,
) -> torch.Tensor:
    """The entries that these tokens look at, [C, K], of those whose keys these are."""
    index_TXI, weights_TX = queries.index, queries.weights
    if kind.chosen is None or index_TXI is None or weights_TX is None:
        raise ValueError("nothing chooses entries in this layer")
    index = filled(index_TXI[rows], around), filled(weights_TX[rows], around)
    return chosen_positions(*index, index_EI, visible_CE, kind.chosen).long()
