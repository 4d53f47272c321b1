"""Attention of all tokens of a pass: at once where a GPU has kernels for it, else sequence by sequence, but for tokens
of answers where a CPU has a kernel for these.

Shape letters in names: T tokens of this pass, N query heads, K kv heads, H head dim, that of values where these are
narrower.
"""

import functools
from collections.abc import Hashable
from types import ModuleType

import torch

from pipeline.formats import cpu_compiled
from pipeline.models.attention import CPU_CELL, GPU_CELL, LayerKV, attend
from pipeline.models.formula_attention import needs_formula
from pipeline.models.layers import Attention
from pipeline.models.pass_rows import (
    ANSWERS_AT_ONCE,
    CPU_ANSWERS_AT_ONCE,
    FEW_TILE_ROWS,
    MOST_TILE_PARTS,
    PART,
    Rows,
    SequenceRows,
    parts_for,
)
from pipeline.models.rotary import Rotary, rotate, rotate_queries
from pipeline.models.triton_kernels import kernels_of

LANES, LEAST_CHANNELS = 16, 1024
"""Channels of a vector; and of all heads for which numba, which takes memory, is loaded."""


def attend_all(
    q_TNH: torch.Tensor,
    keys_TKH: torch.Tensor,
    values_TKH: torch.Tensor,
    turn: Rotary | None,
    kv: LayerKV,
    rows: Rows,
    kind: Attention,
    sinks_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Turn queries and keys, put keys and values into their places, and let each token attend to its own sequence.

    Returns [T, N * H]. On a GPU all rows are computed at once, and the queries are turned in place. Elsewhere those of
    sequences that have ended get zeros: rows have to stay where they are, so that others keep their bits.
    """
    if kernels := _kernels(q_TNH.device, q_TNH.dtype, kind):
        q_TNH = q_TNH.contiguous()
        kernels.turn_and_write(q_TNH, keys_TKH, values_TKH, turn, kv.memory, rows)
        mixed_TA: torch.Tensor = kernels.attend(q_TNH, kv.memory, rows, kind, sinks_N)
        return mixed_TA
    if turn:
        q_TNH, keys_TKH = rotate_queries(q_TNH, turn), rotate(keys_TKH, turn)
    kv.write(rows, keys_TKH, values_TKH)
    sequences = rows.by_sequence()
    fast = _compiled(q_TNH.device, q_TNH.dtype, kind)
    if fast and any(one.prompts < one.end - one.begin for one in sequences):
        answers_TA: torch.Tensor = fast.attend_answers(q_TNH, kv.memory, sequences, kind, sinks_N)
        for one in sequences:
            prompt = slice(one.begin, one.begin + one.prompts)
            if one.prompts:
                answers_TA[prompt] = _attend_rows(q_TNH[prompt], kv, one, kind, sinks_N)
        return answers_TA
    mixed = [_attend_rows(q_TNH[one.begin : one.end], kv, one, kind, sinks_N) for one in sequences]
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def launches(kind: Attention, kv: LayerKV, rows: Rows) -> Hashable:
    """Return what launches of `attend_all` depend on beside the rows; None if on more than can be told."""
    is_fixed = not rows.tiles and _kernels(kv.memory.device, kv.memory.dtype, kind)
    return (kv.memory.data_ptr(), rows.parts) if is_fixed else None


def scratch_bytes(kind: Attention, device: torch.device, dtype: torch.dtype, rows: int, context_tokens: int) -> int:
    """The most memory that it takes beside the rows of a pass."""
    positions = context_tokens + GPU_CELL
    tensors = 2 if kind.value_dim == kind.head_dim else 1  # else values are a part of the keys
    one_by_one = tensors * positions * kind.kv_heads * kind.head_dim * dtype.itemsize
    if needs_formula(kind):  # what is read becomes fp32, and then there are the scores of a cell, and who sees whom
        channels = 0 if dtype is torch.float32 else kind.head_dim + kind.value_dim
        wide = positions * kind.kv_heads * channels * torch.float32.itemsize
        scores = positions * CPU_CELL * (kind.heads * torch.float32.itemsize + 2 * torch.bool.itemsize)
        one_by_one = max(one_by_one + wide, (wide or one_by_one) + scores)
    if device.type != "cuda":
        at_once = min(rows, CPU_ANSWERS_AT_ONCE) if dtype is torch.bfloat16 and is_compiled(kind) else 0
        parts = 2 * -(-context_tokens // PART) + 3  # groups are filled up to less than twice; queries, too, in fp32
        return max(one_by_one, at_once * kind.heads * parts * (kind.head_dim + 2) * torch.float32.itemsize)
    of_answers = min(rows, ANSWERS_AT_ONCE) * kind.heads * parts_for(context_tokens)
    parts = 2 * of_answers + FEW_TILE_ROWS * MOST_TILE_PARTS  # answers have those of recorded kernels, and of others
    return max(one_by_one, parts * (kind.head_dim + 2) * torch.float32.itemsize)


def is_compiled(kind: Attention) -> bool:
    """Whether a CPU has a kernel of numba for answers in bf16: where it multiplies in bf16 by itself, as for large
    matrices. Capped scores stay with torch, and values that are parts of keys.
    """
    fits = kind.keeps_values and kind.softcap is None and kind.head_dim % LANES == 0
    return fits and kind.heads * kind.head_dim >= LEAST_CHANNELS and cpu_compiled.has_dots()


@functools.cache
def _compiled(device: torch.device, dtype: torch.dtype, kind: Attention) -> ModuleType | None:
    """Return what computes answers at once on a CPU; None where torch does, by the kind and the machine alone.

    Raises ResourceError where what is compiled cannot be kept.
    """
    if device.type != "cpu" or dtype is not torch.bfloat16 or not is_compiled(kind) or cpu_compiled.kernels() is None:
        return None
    from pipeline.models import cpu_attention

    cpu_attention.make_ready(kind)
    return cpu_attention


@functools.cache
def _kernels(device: torch.device, dtype: torch.dtype, kind: Attention) -> ModuleType | None:
    """Return what computes all rows at once, where this is a GPU for which Triton compiles it."""
    return kernels_of("pipeline.models.paged_attention", device, "attention runs request by request", dtype, kind)


def _attend_rows(
    q_TNH: torch.Tensor, kv: LayerKV, one: SequenceRows, kind: Attention, sinks_N: torch.Tensor | None
) -> torch.Tensor:
    if one.ended():
        return q_TNH.new_zeros(len(q_TNH), kind.heads * kind.value_dim)
    return attend(q_TNH, kv, one.blocks_B, one.start, one.prompt_tokens, kind, sinks_N)
