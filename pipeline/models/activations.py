"""The memory that the halves of a layer and the head take while `decoder` computes them, for each row of a kernel.

Counted beside the hidden states, the weights, and what attention takes for a whole context. `fused` says that norms,
gates and rotary embedding are one kernel each, as on a GPU.

Letters in names: D hidden, N query heads, K kv heads, H head dim, F ffn.
"""

import torch

from pipeline.models.layers import DeltaNet, Layer

FP32_BYTES = torch.float32.itemsize


def half_bytes(layer: Layer, dtype: torch.dtype, *, fused: bool, silu_by_formula: bool) -> int:
    """The most that a half takes for a row."""
    item, size, kind = dtype.itemsize, layer.hidden_size, layer.mixer
    if isinstance(kind, DeltaNet):
        raise NotImplementedError
    NH, KH, F = kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim, layer.feed_forward.size
    projected = (size + NH + 2 * KH) * item  # of the normed row
    head_norms = projected + _norm_bytes(NH, dtype, fused=fused) if kind.query_key_norms else 0
    if fused:  # with what attention keeps of long contexts meanwhile
        attended = projected + NH * item + max(size * item, (NH + 2 * kind.heads) * FP32_BYTES)
    else:
        # The queries turned, each piece of what they give, and all of it; the turned ones in their cells, or two steps.
        attended = projected + 4 * NH * item
    gated = (size + 2 * F) * item + max(size * item, 0 if fused else _silu_bytes(F, dtype, by_formula=silu_by_formula))
    return max(_norm_bytes(size, dtype, fused=fused), head_norms, attended, gated)


def head_bytes(hidden_size: int, slice_rows: int, dtype: torch.dtype, *, fused: bool) -> int:
    """The most that a slice of the head takes for a row, whose logits are cast to fp32."""
    cast = 0 if dtype is torch.float32 else FP32_BYTES
    norm = hidden_size * dtype.itemsize + _norm_bytes(hidden_size, dtype, fused=fused)
    return max(norm, slice_rows * (dtype.itemsize + cast))


def embedding_bytes(hidden_size: int, turned_channels: int, dtype: torch.dtype) -> int:
    """The most that the embedding takes for a row: itself, or the angles of the widest rope, step by step."""
    return max(hidden_size * dtype.itemsize, 5 * turned_channels * FP32_BYTES)


def _norm_bytes(items: int, dtype: torch.dtype, *, fused: bool) -> int:
    """What is normed is another tensor; in torch the fp32 of it, and what follows from that."""
    if fused:
        return items * dtype.itemsize
    return items * 2 * (FP32_BYTES if dtype is torch.float32 else FP32_BYTES + dtype.itemsize)


def _silu_bytes(items: int, dtype: torch.dtype, *, by_formula: bool) -> int:
    if dtype is torch.float32:
        return items * FP32_BYTES
    return items * 2 * FP32_BYTES if by_formula else 0
