"""Causal attention of the tokens of one pass, sequence by sequence, over the keys and values of one layer.

Shape letters in names: T tokens of this pass, S positions attended, B blocks, P positions of a block, N query heads,
K kv heads, G query heads that share a kv head, H head dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Rows [begin, end) of a pass belong to one sequence, at positions from `start` on.

    `blocks_B` is its block table, int64 on the device: position p is row p % P of block p // P of the table. Once it
    has `ended`, nobody looks at what comes out for its rows.
    """

    begin: int
    end: int
    start: int
    blocks_B: torch.Tensor
    ended: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the tokens of a pass go: the block and the row in it of each, int64 [T], and whose they are."""

    blocks_T: torch.Tensor
    offsets_T: torch.Tensor
    sequences: Sequence[SequenceRows]


@dataclass(frozen=True, slots=True)
class LayerKV:
    """The keys and values of one layer in blocks, [B, 2, P, K, H] in the compute dtype."""

    memory: torch.Tensor

    def write(self, rows: Rows, keys_TKH: torch.Tensor, values_TKH: torch.Tensor) -> None:
        """Put the keys and values of the tokens of a pass into their places."""
        for index, new_TKH in enumerate((keys_TKH, values_TKH)):
            self.memory[:, index].index_put_((rows.blocks_T, rows.offsets_T), new_TKH)

    def read(self, blocks_B: torch.Tensor, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and the values of positions [first, end) of one sequence, each a copy, [S, K, H]."""
        positions = self.memory.shape[2]
        skipped = first // positions
        needed_B = blocks_B[skipped : -(-end // positions)]
        first, end = first - skipped * positions, end - skipped * positions
        keys_SKH, values_SKH = (self.memory[:, index].index_select(0, needed_B).flatten(0, 1) for index in (0, 1))
        return keys_SKH[first:end], values_SKH[first:end]


def attend_all(q_TNH: torch.Tensor, kv: LayerKV, rows: Rows, window: int | None) -> torch.Tensor:
    """Attention of every token over its own sequence; returns [T, N * H]. The rows of the pass must be written.

    Sequences that have ended get zeros: rows have to stay where they are, so that others keep their bits.
    """
    mixed = [_attend_rows(q_TNH[one.begin : one.end], kv, one, window) for one in rows.sequences]
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _attend_rows(q_TNH: torch.Tensor, kv: LayerKV, one: SequenceRows, window: int | None) -> torch.Tensor:
    if one.ended():
        return torch.zeros_like(q_TNH).flatten(1)
    return attend(q_TNH, kv, one.blocks_B, one.start, window)


def attend(q_TNH: torch.Tensor, kv: LayerKV, blocks_B: torch.Tensor, start: int, window: int | None) -> torch.Tensor:
    """Attention of one sequence's tokens at [start, start + T) over all positions up to each; returns [T, N * H].

    With `window`, a token sees the last `window` positions, itself included.
    """
    tokens = q_TNH.shape[0]
    end = start + tokens
    first = 0 if window is None else max(0, start + 1 - window)
    keys_SKH, values_SKH = kv.read(blocks_B, first, end)
    if tokens == 1:
        return _attend_one(q_TNH, keys_SKH, values_SKH)
    q_1NTH, keys_1KSH, values_1KSH = (x.transpose(0, 1).unsqueeze(0) for x in (q_TNH, keys_SKH, values_SKH))
    sees_all = window is None or window >= end
    is_causal = start == 0 and sees_all
    if sees_all and _flash_can(q_1NTH, keys_1KSH, values_1KSH):
        mixed_1NTH = _flash(q_1NTH, keys_1KSH, values_1KSH, is_causal=True)
    else:
        mixed_1NTH = scaled_dot_product_attention(
            q_1NTH,
            keys_1KSH,
            values_1KSH,
            attn_mask=None if is_causal else _visible(first, start, end, window, q_TNH.device),
            is_causal=is_causal,
            enable_gqa=q_TNH.shape[1] != keys_SKH.shape[1],
        )
    return mixed_1NTH.squeeze(0).transpose(0, 1).flatten(1)


def _attend_one(q_1NH: torch.Tensor, keys_SKH: torch.Tensor, values_SKH: torch.Tensor) -> torch.Tensor:
    """One token sees every row: heads that share a kv head stand where tokens stand, so its rows are read once."""
    _, kv_heads, head_dim = keys_SKH.shape
    q_1KGH = q_1NH.view(1, kv_heads, -1, head_dim)
    keys_1KSH, values_1KSH = (x.transpose(0, 1).unsqueeze(0) for x in (keys_SKH, values_SKH))
    if _flash_can(q_1KGH, keys_1KSH, values_1KSH):
        mixed_1KGH = _flash(q_1KGH, keys_1KSH, values_1KSH, is_causal=False)
    else:
        mixed_1KGH = scaled_dot_product_attention(q_1KGH, keys_1KSH, values_1KSH)
    return mixed_1KGH.reshape(1, -1)


def _flash_can(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether this GPU has a flash kernel for it; on the CPU torch chooses well by itself."""
    if not q.is_cuda:
        return False
    asked = SDPAParams(q, keys, values, None, 0.0, False, q.shape[1] != keys.shape[1])
    return q.shape[-1] % 8 == 0 and can_use_flash_attention(asked)


def _flash(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, is_causal: bool) -> torch.Tensor:
    """The flash kernel by name: left to itself torch may take cuDNN's, which plans every new length for 50 ms (H100).

    Causal means that the last query sees the last key, however many of either there are.
    """
    mixed: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, keys, values, 0.0, is_causal)[0]
    return mixed


def _visible(first: int, start: int, end: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[T, S], true where the token at row + start may look at the position column + first."""
    query_T1 = torch.arange(start, end, device=device).unsqueeze(1)
    key_S = torch.arange(first, end, device=device)
    visible_TS = key_S <= query_T1
    return visible_TS if window is None else visible_TS & (key_S > query_T1 - window)
