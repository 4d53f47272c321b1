"""Latent attention to the positions that an indexer has chosen (arXiv 2512.02556), sequence by sequence.

As with other attention, what comes out for a token follows from its position alone: the tokens of a prompt are computed
in whole cells, each token of an answer by itself. Where there are no more positions than are chosen, all are looked at.

Shape letters in names: T tokens of this pass, S positions, C positions of a cell, N heads, H channels of a key as it is
kept, V of values, K chosen positions, X heads of the indexer, I channels of its keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import layer_norm, pad

from pipeline.formats.matrix import Weights
from pipeline.models.attention import CPU_CELL, LayerKV
from pipeline.models.formula_attention import attend_by_formula
from pipeline.models.latents import Indexer, LatentAttention
from pipeline.models.pass_rows import Rows, SequenceRows
from pipeline.models.rotary import Rotary, rotate

EPSILON = 1e-6
"""What the norm of index keys adds to the variance."""


@dataclass(frozen=True, slots=True)
class IndexRows:
    """What is projected of tokens to choose by: queries [T, X, I], their weights, fp32 [T, X], and keys [T, I]."""

    queries: torch.Tensor
    weights: torch.Tensor
    keys: torch.Tensor


def index_rows(
    kind: Indexer, weights: Weights, normed_TD: torch.Tensor, query_latent_TR: torch.Tensor, turn: Rotary | None
) -> IndexRows:
    """Project, norm and turn what an indexer sees of tokens."""
    q_TXI = weights.project("index_q", query_latent_TR).unflatten(1, (kind.heads, -1))
    k_TI = weights.project("index_k", normed_TD)
    norm_I, bias_I = (weights.tensors[short].float() for short in ("index_norm", "index_norm_bias"))
    k_TI = layer_norm(k_TI.float(), (kind.head_dim,), norm_I, bias_I, EPSILON).to(k_TI.dtype)
    of_heads_TX = weights.project("index_weights", normed_TD.float()).mul_((kind.heads * kind.head_dim) ** -0.5)
    if turn:
        q_TXI, k_TI = _turned(kind, q_TXI, turn), _turned(kind, k_TI.unsqueeze(1), turn).squeeze(1)
    return IndexRows(q_TXI, of_heads_TX, k_TI)


def attend_chosen(
    q_TNH: torch.Tensor, keys_T1H: torch.Tensor, index: IndexRows | None, kv: LayerKV, rows: Rows, kind: LatentAttention
) -> torch.Tensor:
    """Put keys into their places, and let each token attend to its own sequence; returns [T, N * V].

    Without an `index` they look at the positions of the layer before that has one.
    """
    kv.write(rows, keys_T1H, keys_T1H)
    if index is not None and kv.index is not None:
        positions_T, blocks_T = rows.numbers[: rows.tokens, :2].unbind(1)
        kv.index.index_put_((blocks_T, positions_T % kv.index.shape[1]), index.keys[: rows.tokens])
    mixed = [_attend_rows(q_TNH, index, kv, one, kind) for one in rows.by_sequence()]
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def scratch_bytes(kind: LatentAttention, rows: int, context_tokens: int) -> int:
    """The most memory that choosing takes: scores of a cell, and what is chosen for all rows of a pass."""
    if kind.chosen is None or context_tokens <= kind.chosen:
        return 0
    heads = kind.indexer.heads if kind.indexer else 0
    positions = context_tokens + CPU_CELL
    scores = positions * CPU_CELL * (heads + 2) * torch.float32.itemsize
    return scores + positions * kind.index_dim * torch.float32.itemsize * 2 + rows * kind.chosen * torch.int32.itemsize


def _attend_rows(
    q_TNH: torch.Tensor, index: IndexRows | None, kv: LayerKV, one: SequenceRows, kind: LatentAttention
) -> torch.Tensor:
    if one.ended():
        return q_TNH.new_zeros(one.end - one.begin, kind.heads * kind.value_dim)
    end = one.start + one.end - one.begin
    until = max(end, -(-min(end, one.prompt_tokens) // CPU_CELL) * CPU_CELL)
    keys_SH, values_SV = (part.float() for part in kv.read_filled(one.blocks_B, 0, end, 0, until - end))
    index_SI = None if index is None else _index_keys(kv, one.blocks_B, end, until)
    mixed = []
    for begin, last, cell in steps(one.start, end, one.prompt_tokens):
        first = begin // cell * cell
        rows = slice(one.begin + begin - one.start, one.begin + last - one.start)
        around = (begin - first, first + cell - last)
        seen, visible_CS = first + cell, None
        keys, values = keys_SH[:seen], values_SV[:seen]
        if cell > 1:
            positions = torch.arange(seen, device=q_TNH.device)
            visible_CS = positions <= positions[first:].unsqueeze(1)
        if kind.chosen is not None and seen > kind.chosen:
            if index is not None and index_SI is not None:
                queries_CXI, weights_CX = (filled(part[rows], around) for part in (index.queries, index.weights))
                one.choices[begin] = chosen_positions(queries_CXI, weights_CX, index_SI[:seen], visible_CS, kind.chosen)
            chosen_CK = one.choices[begin].long()
            if visible_CS is None:
                keys, values = keys[chosen_CK[0]], values[chosen_CK[0]]
            else:
                visible_CS &= torch.zeros_like(visible_CS).scatter_(1, chosen_CK, True)
        mixed_CA = attend_by_formula(filled(q_TNH[rows], around), keys, values, kind, None, visible_CS)
        mixed.append(mixed_CA[begin - first : last - first])
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def steps(start: int, end: int, prompt_tokens: int) -> Iterator[tuple[int, int, int]]:
    """Positions [begin, end) that are computed together, and of how many they are: a cell of a prompt, or one."""
    while start < end:
        cell = CPU_CELL if start < prompt_tokens else 1
        last = min(start // cell * cell + cell, end, max(prompt_tokens, start + 1))
        yield start, last, cell
        start = last


def filled(rows: torch.Tensor, around: tuple[int, int]) -> torch.Tensor:
    """Rows of a cell, with zeros in the place of those that are not there."""
    return pad(rows, (0, 0) * (rows.ndim - 1) + around) if any(around) else rows


def _index_keys(kv: LayerKV, blocks_B: torch.Tensor, end: int, until: int) -> torch.Tensor | None:
    """The index keys of positions below `end`, and zeros behind them, fp32 [S, I]."""
    if kv.index is None:
        return None
    keys_SI = kv.index.index_select(0, blocks_B[: -(-end // kv.index.shape[1])]).flatten(0, 1)[:end]
    return pad(keys_SI.float(), (0, 0, 0, until - end))


def chosen_positions(
    queries_CXI: torch.Tensor,
    weights_CX: torch.Tensor,
    keys_SI: torch.Tensor,
    visible_CS: torch.Tensor | None,
    count: int,
) -> torch.Tensor:
    """The positions with the highest scores, int32 [C, K]."""
    heads = queries_CXI.shape[1]
    scores_CXS = (queries_CXI.float().flatten(0, 1) @ keys_SI.t()).relu_().unflatten(0, (-1, heads))
    scores_CS = (weights_CX.unsqueeze(1) @ scores_CXS).squeeze(1)
    if visible_CS is not None:
        scores_CS.masked_fill_(~visible_CS, -torch.inf)
    chosen_CK: torch.Tensor = scores_CS.topk(count, dim=-1).indices.int()
    return chosen_CK


def _turned(kind: Indexer, x_TXI: torch.Tensor, turn: Rotary) -> torch.Tensor:
    """Where pairs lie otherwise than in attention, the channels of both queries and keys change places first."""
    channels = turn.cos.shape[-1]
    if kind.interleaved != turn.interleaved:
        shape = (2, -1) if turn.interleaved else (-1, 2)
        turning = x_TXI[..., :channels].unflatten(-1, shape).transpose(-1, -2).flatten(-2)
        x_TXI = torch.cat((turning, x_TXI[..., channels:]), dim=-1)
    return rotate(x_TXI, turn)
