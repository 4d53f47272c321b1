"""Multi-head latent attention of the tokens of one pass: the keys and values of the heads are never made.

A head's key is a product of its matrix and the latent: in its place the query is multiplied by that matrix, and by the
one that makes values what the softmax makes of latents. A token of an answer is spared nearly all that way: of 64 heads
and 2,048 positions a core makes keys and values in 200 ms, and attends in 14 ms; latents it attends to in 3 ms. For
16 tokens of a prompt that is 46 ms in place of 29: pieces of fewer than 200 tokens win, too, longer ones lose little.

Shape letters in names: T tokens of this pass, D hidden, N heads, S channels of a head that do not turn, R rank of the
latent, H channels of a key as it is kept, V of a head's value, I, O and X any.
"""

import torch

from pipeline.formats.dense import linear
from pipeline.formats.matrix import Weights
from pipeline.models.attention import LayerKV
from pipeline.models.latents import OF_HEADS, LatentAttention
from pipeline.models.ops import rms_norm
from pipeline.models.pass_attention import attend_all
from pipeline.models.pass_rows import Rows
from pipeline.models.rotary import Rotary, rotate
from pipeline.models.sparse_attention import attend_chosen, index_rows


def mix(
    kind: LatentAttention, weights: Weights, normed_TD: torch.Tensor, turn: Rotary | None, kv: LayerKV, rows: Rows
) -> torch.Tensor:
    """The mixer, from the normed hidden states to what the last projection, "o", takes, [T, N * V]."""
    of_heads_NXR = weights.matrices[OF_HEADS].decoded(normed_TD.dtype).unflatten(0, (kind.heads, -1))
    keys_NSR, values_NVR = of_heads_NXR.split((kind.still_dim, kind.output_dim), dim=1)
    query_latent_TR = _query_latent(kind, weights, normed_TD)
    q_TNH = _queries(kind, weights, query_latent_TR, turn, keys_NSR)
    keys_T1H = _keys(kind, weights, normed_TD, turn)
    if kind.chosen is None:
        mixed_TA = attend_all(q_TNH, keys_T1H, keys_T1H, None, kv, rows, kind)
    else:
        index = index_rows(kind.indexer, weights, normed_TD, query_latent_TR, turn) if kind.indexer else None
        mixed_TA = attend_chosen(q_TNH, keys_T1H, index, kv, rows, kind)
    del q_TNH  # it is large
    return _by_head(mixed_TA.unflatten(1, (kind.heads, -1)), values_NVR).flatten(1)


def _query_latent(kind: LatentAttention, weights: Weights, normed_TD: torch.Tensor) -> torch.Tensor:
    """Return what queries are made of."""
    if kind.query_rank is None:
        return normed_TD
    return rms_norm(weights.project("q_a", normed_TD), weights.tensors["q_a_norm"], kind.latent_epsilon)


def _queries(
    kind: LatentAttention, weights: Weights, latent_TR: torch.Tensor, turn: Rotary | None, keys_NSR: torch.Tensor
) -> torch.Tensor:
    """Queries as keys are kept: what turns, and behind it what the latent is multiplied by, [T, N, H]."""
    q_TNX = weights.project("q" if kind.query_rank is None else "q_b", latent_TR).unflatten(1, (kind.heads, -1))
    if turn and turn.growth is not None:
        q_TNX = q_TNX * turn.growth.to(q_TNX.dtype)
    still_TNS, turning_TNC = q_TNX.split((kind.still_dim, kind.turned_dim), dim=2)
    if turn:
        turning_TNC = rotate(turning_TNC, turn)
    return torch.cat((turning_TNC, _by_head(still_TNS, keys_NSR.transpose(1, 2))), dim=2)


def _keys(kind: LatentAttention, weights: Weights, normed_TD: torch.Tensor, turn: Rotary | None) -> torch.Tensor:
    """Return what is kept of each token, [T, 1, H]."""
    latent_TR, turning_TC = weights.project("kv_a", normed_TD).split((kind.rank, kind.turned_dim), dim=1)
    latent_TR = rms_norm(latent_TR.contiguous(), weights.tensors["kv_a_norm"], kind.latent_epsilon)
    turning_T1C = turning_TC.unsqueeze(1)
    return torch.cat((rotate(turning_T1C, turn) if turn else turning_T1C, latent_TR.unsqueeze(1)), dim=2)


def _by_head(x_TNI: torch.Tensor, weight_NOI: torch.Tensor) -> torch.Tensor:
    """The product of each head with its own matrix, [T, N, O].

    On a CPU head by head: the bits of a row of a product of batches depend on how many there are.
    """
    if x_TNI.is_cuda:
        return torch.bmm(x_TNI.transpose(0, 1), weight_NOI.transpose(1, 2)).transpose(0, 1)
    product_TNO = x_TNI.new_empty(*x_TNI.shape[:2], weight_NOI.shape[1])
    for head, weight_OI in enumerate(weight_NOI):
        product_TNO[:, head] = linear(x_TNI[:, head], weight_OI)
    return product_TNO
