"""Causal attention of the tokens of one pass over the keys and values of one layer.

Shape letters in names: T tokens of this pass, S positions attended, C context capacity, N query heads, K kv heads,
G query heads that share a kv head, H head dim.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class LayerKV:
    """The keys and values of one layer and one sequence, each [C, K, H] in the compute dtype; row = position."""

    keys: torch.Tensor
    values: torch.Tensor


def attend(q_TNH: torch.Tensor, kv: LayerKV, start: int, window: int | None) -> torch.Tensor:
    """Attention of the tokens at [start, start + T) over all rows up to each of them; returns [T, N * H].

    With `window`, a token sees the last `window` positions, itself included. Rows up to start + T must be written.
    """
    tokens = q_TNH.shape[0]
    end = start + tokens
    first = 0 if window is None else max(0, start + 1 - window)
    keys_SKH, values_SKH = kv.keys[first:end], kv.values[first:end]
    if tokens == 1:
        return _attend_one(q_TNH, keys_SKH, values_SKH)
    is_causal = start == 0 and (window is None or window >= end)
    mixed_1NTH = scaled_dot_product_attention(
        q_TNH.transpose(0, 1).unsqueeze(0),
        keys_SKH.transpose(0, 1).unsqueeze(0),
        values_SKH.transpose(0, 1).unsqueeze(0),
        attn_mask=None if is_causal else _visible(first, start, end, window, q_TNH.device),
        is_causal=is_causal,
        enable_gqa=q_TNH.shape[1] != keys_SKH.shape[1],
    )
    return mixed_1NTH.squeeze(0).transpose(0, 1).flatten(1)


def _attend_one(q_1NH: torch.Tensor, keys_SKH: torch.Tensor, values_SKH: torch.Tensor) -> torch.Tensor:
    """One token sees every row: heads that share a kv head stand where tokens stand, so its rows are read once."""
    _, kv_heads, head_dim = keys_SKH.shape
    mixed_1KGH = scaled_dot_product_attention(
        q_1NH.view(1, kv_heads, -1, head_dim),
        keys_SKH.transpose(0, 1).unsqueeze(0),
        values_SKH.transpose(0, 1).unsqueeze(0),
    )
    return mixed_1KGH.reshape(1, -1)


def _visible(first: int, start: int, end: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[T, S], true where the token at row + start may look at the position column + first."""
    query_T1 = torch.arange(start, end, device=device).unsqueeze(1)
    key_S = torch.arange(first, end, device=device)
    visible_TS = key_S <= query_T1
    return visible_TS if window is None else visible_TS & (key_S > query_T1 - window)
