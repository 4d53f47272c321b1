"""Causal attention of the tokens of one sequence over the keys and values of one layer, by what torch has.

What comes out for a token must not depend on other requests in the pass, nor on where its prompt is cut into passes. So
which kernel computes it, on tensors of which shape, follows from its position alone: the tokens of a prompt in cells
of a fixed number of positions, whole ones always, and each token of an answer by itself.

Shape letters in names: T tokens of this pass, S positions attended, B blocks, P positions of a block, N query heads,
K kv heads, G query heads that share a kv head, H head dim (that of values where these are narrower), C positions of a
cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from pipeline.models.formula_attention import attend_by_formula, needs_formula
from pipeline.models.layers import Attention
from pipeline.models.pass_rows import Rows

CPU_CELL, GPU_CELL = 16, 512
"""Positions of a cell: few, so that a short piece of a prompt fills it, and as many as a GPU computes at a time."""

ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True)
class LayerKV:
    """The keys and values of one layer in blocks, [B, 2, P, K, H] in the compute dtype.

    Or [B, 1, P, K, H], where the last `value_dim` channels of the keys are the values: None where values are kept.
    Beside them there may be what is kept to choose positions by, `index`, [B, P, channels], and what is kept of all
    positions of a block together, in parts, `beside`, [B, ...] each.
    """

    memory: torch.Tensor
    value_dim: int | None = None
    index: torch.Tensor | None = None
    beside: Sequence[torch.Tensor] = ()

    def write(self, rows: Rows, keys_TKH: torch.Tensor, values_TKH: torch.Tensor) -> None:
        """Put the keys and values of the tokens of a pass into their places; rows behind the last token have none."""
        positions_T, blocks_T = rows.numbers[: rows.tokens, :2].unbind(1)
        for into, new_TKH in zip(self.memory.unbind(1), (keys_TKH, values_TKH), strict=False):
            into.index_put_((blocks_T, positions_T % into.shape[1]), new_TKH[: rows.tokens])

    def read(self, blocks_B: torch.Tensor, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and the values of positions [first, end) of one sequence, each a copy, [S, K, H]."""
        positions = self.memory.shape[2]
        skipped = first // positions
        needed_B = blocks_B[skipped : -(-end // positions)]
        first, end = first - skipped * positions, end - skipped * positions
        read = [one.index_select(0, needed_B).flatten(0, 1)[first:end] for one in self.memory.unbind(1)]
        return read[0], self._values(read[-1])

    def read_filled(
        self, blocks_B: torch.Tensor, first: int, end: int, before: int, behind: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, with so many rows of zeros `before` and `behind` them."""
        positions = self.memory.shape[2]
        needed_B = blocks_B[first // positions : -(-end // positions)]
        lead = max(before - first % positions, 0)
        begin, copied = lead + first % positions - before, len(needed_B) * positions
        last = begin + before + end - first + behind
        read = []
        for one in self.memory.unbind(1):
            room_SKH = self.memory.new_empty(max(last, lead + copied), *self.memory.shape[3:])
            into_BPKH = room_SKH[lead : lead + copied].unflatten(0, (-1, positions))
            torch.index_select(one, 0, needed_B, out=into_BPKH)
            if before:
                room_SKH[begin : begin + before] = 0
            if behind:
                room_SKH[last - behind : last] = 0
            read.append(room_SKH[begin:last])
        return read[0], self._values(read[-1])

    def _values(self, read_SKH: torch.Tensor) -> torch.Tensor:
        return read_SKH if self.value_dim is None else read_SKH[..., -self.value_dim :]


def attend(
    q_TNH: torch.Tensor,
    kv: LayerKV,
    blocks_B: torch.Tensor,
    start: int,
    prompt_tokens: int,
    kind: Attention,
    sinks_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one sequence's tokens at [start, start + T), over what each sees; returns [T, N * H]."""
    prompts = min(max(prompt_tokens - start, 0), len(q_TNH))
    mixed = [_attend_prompt(q_TNH[:prompts], kv, blocks_B, start, kind, sinks_N)] if prompts else []
    for index in range(prompts, len(q_TNH)):
        position = start + index
        keys_SKH, values_SKH = kv.read(blocks_B, kind.first_seen(position), position + 1)
        mixed.append(_attend_one(_aligned(q_TNH[index : index + 1]), keys_SKH, values_SKH, kind, sinks_N))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _aligned(rows: torch.Tensor) -> torch.Tensor:
    """The same rows at an address that depends on nothing before them: kernels round by it where it is odd."""
    return rows.clone() if rows.data_ptr() % ALIGNMENT_BYTES else rows


def _attend_prompt(
    q_TNH: torch.Tensor,
    kv: LayerKV,
    blocks_B: torch.Tensor,
    start: int,
    kind: Attention,
    sinks_N: torch.Tensor | None,
) -> torch.Tensor:
    """Cell by cell. In the place of positions that are not there, or that no token of these looks at, stand zeros."""
    cell = GPU_CELL if q_TNH.is_cuda and not needs_formula(kind) else CPU_CELL
    end = start + len(q_TNH)
    begin, until = start // cell * cell, -(-end // cell) * cell
    first, first_read = kind.first_seen(begin), kind.first_seen(start)
    keys_SKH, values_SKH = kv.read_filled(blocks_B, first_read, end, first_read - first, until - end)
    if needs_formula(kind):
        keys_SKH, values_SKH = keys_SKH.float(), values_SKH.float()  # once, for all cells
    keys_SKH, values_SKH, q_TNH = _aligned(keys_SKH), _aligned(values_SKH), _aligned(q_TNH)
    if (begin, until) != (start, end):
        q_TNH = pad(q_TNH, (0, 0, 0, 0, start - begin, until - end))
    mixed = []
    for position in range(begin, until, cell):
        seen = slice(kind.first_seen(position) - first, position + cell - first)
        q_CNH = q_TNH[position - begin : position - begin + cell]
        mixed.append(_attend_cell(q_CNH, keys_SKH[seen], values_SKH[seen], position, kind, sinks_N))
    return (mixed[0] if len(mixed) == 1 else torch.cat(mixed))[start - begin : end - begin]


def _attend_cell(
    q_CNH: torch.Tensor,
    keys_SKH: torch.Tensor,
    values_SKH: torch.Tensor,
    start: int,
    kind: Attention,
    sinks_N: torch.Tensor | None,
) -> torch.Tensor:
    """The tokens of a cell, whose last sees the last of these positions; returns [C, N * H]."""
    end = start + len(q_CNH)
    if needs_formula(kind):
        visible_CS = _visible(end - len(keys_SKH), start, end, kind, q_CNH.device)
        return attend_by_formula(q_CNH, keys_SKH, values_SKH, kind, sinks_N, visible_CS)
    q_1NCH, keys_1KSH, values_1KSH = (x.transpose(0, 1).unsqueeze(0) for x in (q_CNH, keys_SKH, values_SKH))
    sees_all = kind.first_seen(end - 1) == 0
    is_grouped = q_CNH.shape[1] != keys_SKH.shape[1]
    if sees_all and _flash_can(q_1NCH, keys_1KSH, values_1KSH):
        mixed_1NCH = _flash(q_1NCH, keys_1KSH, values_1KSH, _scale(kind), is_causal=True)
    elif sees_all and not start:
        mixed_1NCH = scaled_dot_product_attention(
            q_1NCH, keys_1KSH, values_1KSH, is_causal=True, scale=_scale(kind), enable_gqa=is_grouped
        )
    else:
        visible_CS = _visible(end - len(keys_SKH), start, end, kind, q_CNH.device)
        mixed_1NCH = scaled_dot_product_attention(
            q_1NCH, keys_1KSH, values_1KSH, attn_mask=visible_CS, scale=_scale(kind), enable_gqa=is_grouped
        )
    return mixed_1NCH.squeeze(0).transpose(0, 1).flatten(1)


def _attend_one(
    q_1NH: torch.Tensor,
    keys_SKH: torch.Tensor,
    values_SKH: torch.Tensor,
    kind: Attention,
    sinks_N: torch.Tensor | None,
) -> torch.Tensor:
    """One token sees every row: heads that share a kv head stand where tokens stand, so its rows are read once."""
    if needs_formula(kind):
        return attend_by_formula(q_1NH, keys_SKH, values_SKH, kind, sinks_N, None)
    _, kv_heads, head_dim = keys_SKH.shape
    q_1KGH = q_1NH.view(1, kv_heads, -1, head_dim)
    keys_1KSH, values_1KSH = (x.transpose(0, 1).unsqueeze(0) for x in (keys_SKH, values_SKH))
    if _flash_can(q_1KGH, keys_1KSH, values_1KSH):
        mixed_1KGH = _flash(q_1KGH, keys_1KSH, values_1KSH, _scale(kind), is_causal=False)
    else:
        mixed_1KGH = scaled_dot_product_attention(q_1KGH, keys_1KSH, values_1KSH, scale=_scale(kind))
    return mixed_1KGH.reshape(1, -1)


def _scale(kind: Attention) -> float | None:
    """As kernels of torch are told; they compute the usual one in their own way."""
    return None if kind.scale == kind.head_dim**-0.5 else kind.scale


def _flash_can(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether this GPU has a flash kernel for it; on the CPU torch chooses well by itself."""
    if not q.is_cuda:
        return False
    asked = SDPAParams(q, keys, values, None, 0.0, False, q.shape[1] != keys.shape[1])
    return q.shape[-1] % 8 == 0 and can_use_flash_attention(asked)


def _flash(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None, *, is_causal: bool
) -> torch.Tensor:
    """The flash kernel by name: left to itself torch may take cuDNN's, which plans every new length for 50 ms (H100).

    Causal means that the last query sees the last key, however many of either there are.
    """
    mixed: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        q, keys, values, 0.0, is_causal, scale=scale
    )[0]
    return mixed


def _visible(first: int, start: int, end: int, kind: Attention, device: torch.device) -> torch.Tensor:
    """[C, S], true where the token at row + start may look at the position column + first."""
    query_C1 = torch.arange(start, end, device=device).unsqueeze(1)
    key_S = torch.arange(first, end, device=device)
    visible_CS = key_S <= query_C1
    if kind.chunk is not None:
        visible_CS &= key_S >= query_C1 // kind.chunk * kind.chunk
    return visible_CS if kind.window is None else visible_CS & (key_S > query_C1 - kind.window)
