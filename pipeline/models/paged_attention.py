"""Attention of all rows of a pass at once, over keys and values in blocks: Triton kernels, a fixed number of launches.

A token's bits follow from its position alone. The rows of a tile do not mix, its positions are visited from a multiple
of a fixed number on, so many at a time, and what a row may not see adds exact zeros. A token of an answer is a tile by
itself, of the heads that share a kv head; its positions are cut into parts, whose length its position says, so that
a few long contexts fill a GPU. Tokens of a prompt share a tile where they lie in one cell of `TILE` positions.

Shape letters in names: M rows of a tile, S positions visited at a time, P parts, H channels of a head, which are filled
up to a power of two.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from pipeline.formats.early_launches import early
from pipeline.models import paged_kernels, turn_kernels
from pipeline.models.layers import Attention
from pipeline.models.pass_rows import (
    ANSWERS_AT_ONCE,
    FEW_TILE_ROWS,
    MOST_PARTS,
    MOST_TILE_PARTS,
    PART,
    TILE,
    TILE_PART,
    Rows,
    few_rows,
)
from pipeline.models.rotary import Rotary, rotary

LEAST = 16
"""Rows and channels of a product on tensor cores."""
WIDE = 256
"""Channels of a head; of more, fewer heads fit into registers."""
HEADS_AT_ONCE = 8
"""Heads that a program turns."""


def try_out(device: torch.device, dtype: torch.dtype, kind: Attention) -> None:
    """Compile and run the kernels for attention of this kind. Raises whatever Triton raises."""
    zeros = functools.partial(torch.zeros, dtype=dtype, device=device)
    kept = 2 if kind.value_dim == kind.head_dim else 1
    memory, rows = zeros(1, kept, 16, kind.kv_heads, kind.head_dim), few_rows(device)
    q_TNH, keys_TKH = zeros(2, kind.heads, kind.head_dim), zeros(2, kind.kv_heads, kind.head_dim)
    turn = rotary(kind.rope, torch.arange(2, device=device)) if kind.rope and kept == 2 else None
    turn_and_write(q_TNH, keys_TKH, keys_TKH, turn, memory, rows)
    attend(q_TNH, memory, rows, kind, zeros(kind.heads) if kind.sinks else None)
    torch.cuda.synchronize(device)


def turn_and_write(
    q_TNH: torch.Tensor,
    keys_TKH: torch.Tensor,
    values_TKH: torch.Tensor,
    turn: Rotary | None,
    memory: torch.Tensor,
    rows: Rows,
) -> None:
    """Turn the queries in place, and put turned keys, and values, into their blocks; where a block is -1, nowhere.

    Rounds as `rotate` does: a product and a sum are not made one operation, which rounds once.
    """
    tokens, heads, head_dim = q_TNH.shape
    kv_heads = keys_TKH.shape[1]
    turned = turn.cos.shape[-1] if turn else 0
    at_once = min(HEADS_AT_ONCE, triton.next_power_of_2(heads))
    turn_kernels.turn_and_write[(tokens, triton.cdiv(heads, at_once) + triton.cdiv(kv_heads, at_once))](
        q_TNH,
        keys_TKH,
        values_TKH,
        turn.cos if turn else None,
        turn.sin if turn else None,
        turn.growth if turn else None,
        memory,
        rows.numbers,
        q_TNH.stride(0),
        keys_TKH.stride(0),
        values_TKH.stride(0),
        memory.stride(0),
        COLUMNS=rows.numbers.stride(0),
        BLOCK_TOKENS=memory.shape[2],
        HEADS=heads,
        KV_HEADS=kv_heads,
        CHANNELS=head_dim,
        TURNED=turned,
        INTERLEAVED=bool(turn and turn.interleaved),
        VALUES=memory.shape[1] == 2,
        P=triton.next_power_of_2(max(turned // 2, 1)),
        R=triton.next_power_of_2(max(head_dim - turned, 1)),
        N=at_once,
        num_warps=2,
        enable_fp_fusion=False,
        **early(q_TNH.device),
    )


def attend(
    q_TNH: torch.Tensor, memory: torch.Tensor, rows: Rows, kind: Attention, sinks_N: torch.Tensor | None
) -> torch.Tensor:
    """Attention of every row over its own sequence; returns [T, N * H], zeros where a row has no token.

    Where `memory` has no values, these are the last channels of the keys, and H is how many.
    """
    tokens, heads, head_dim = q_TNH.shape
    mixed_TNH = q_TNH.new_empty(tokens, heads, kind.value_dim)
    group = heads // memory.shape[3]
    places = (q_TNH, memory, rows.numbers, rows.tables, memory.stride(0), rows.tables.stride(0))
    log2e = math.log2(math.e)
    scale = kind.scale * log2e if kind.softcap is None else kind.scale / kind.softcap
    width, tail = max(LEAST, triton.next_power_of_2(kind.value_dim)), head_dim - kind.value_dim
    of_answers, of_tiles = _launch_settings(q_TNH.dtype, width)
    shape: dict[str, Any] = {
        "WINDOW": kind.window or 0,
        "CHUNK": kind.chunk or 0,
        "CAP": None if kind.softcap is None else kind.softcap * log2e,
        "COLUMNS": rows.numbers.stride(0),
        "BLOCK_TOKENS": memory.shape[2],
        "HEADS": heads,
        "GROUP": group,
        "CHANNELS": kind.value_dim,
        "TAIL": tail,
        "H": width,
        "R": max(LEAST, triton.next_power_of_2(tail)) if tail else LEAST,
        "PRECISION": "ieee" if q_TNH.dtype is torch.float32 else "tf32",
        "ITEMS": tl.int32 if len(memory) * memory.stride(0) <= torch.iinfo(torch.int32).max else tl.int64,
    }
    for first in range(0, rows.answers, ANSWERS_AT_ONCE):
        _attend_answers(places, mixed_TNH, sinks_N, rows, first, scale, {**shape, **of_answers})
    if rows.tiles:
        _attend_tiles(places, mixed_TNH, sinks_N, rows, scale, {**shape, **of_tiles})
    return mixed_TNH.flatten(1)


def _attend_answers(
    places: tuple[Any, ...],
    mixed_TNH: torch.Tensor,
    sinks_N: torch.Tensor | None,
    rows: Rows,
    first: int,
    scale: float,
    shape: Mapping[str, Any],
) -> None:
    """The parts of the positions of so many answers from the `first` on, then what they give together."""
    count, heads = min(rows.answers - first, ANSWERS_AT_ONCE), shape["HEADS"]
    parts = mixed_TNH.new_empty((count, heads, rows.parts, shape["CHANNELS"]), dtype=torch.float32)
    weights = mixed_TNH.new_empty((count, heads, rows.parts, 2), dtype=torch.float32)
    cuts = {"PART": PART, "MOST_PARTS": MOST_PARTS, **early(mixed_TNH.device)}
    fewest = LEAST if shape["H"] > WIDE else max(LEAST, triton.next_power_of_2(shape["GROUP"]))
    programs = heads // shape["GROUP"] * triton.cdiv(shape["GROUP"], fewest)
    paged_kernels.attend_parts[(rows.parts, programs, count)](
        *places, parts, weights, first, scale, **shape, M=fewest, **cuts
    )
    same = {name: shape[name] for name in ("WINDOW", "CHUNK", "COLUMNS", "CHANNELS", "H", "S")}
    paged_kernels.merge[(heads, count)](
        parts, weights, sinks_N, mixed_TNH, rows.numbers, first, rows.parts, **same, **cuts
    )


def _attend_tiles(
    places: tuple[Any, ...],
    mixed_TNH: torch.Tensor,
    sinks_N: torch.Tensor | None,
    rows: Rows,
    scale: float,
    shape: Mapping[str, Any],
) -> None:
    """Each tile goes through the parts of its positions or, where there are few tiles, all of them at once."""
    heads, most_rows = shape["HEADS"], rows.tiles * TILE
    count = rows.tile_parts if heads * most_rows <= FEW_TILE_ROWS else 1
    kept = (most_rows if count > 1 else len(mixed_TNH) if rows.tile_parts > 1 else 0, heads, count)
    parts = mixed_TNH.new_empty((*kept, shape["CHANNELS"]), dtype=torch.float32)
    weights = mixed_TNH.new_empty((*kept, 2), dtype=torch.float32)
    cells = {"TILE": TILE, "PART": TILE_PART, "MOST_PARTS": MOST_TILE_PARTS}
    programs = heads, most_rows // shape["M"]
    paged_kernels.attend_tiles[*programs, count](*places, mixed_TNH, parts, weights, sinks_N, scale, **shape, **cells)
    if count > 1:
        same = {name: shape[name] for name in ("WINDOW", "CHUNK", "COLUMNS", "CHANNELS", "H", "M", "S")}
        paged_kernels.merge_tiles[programs](parts, weights, sinks_N, mixed_TNH, rows.numbers, count, **same, **cells)


def _launch_settings(dtype: torch.dtype, width: int) -> tuple[dict[str, int], dict[str, int]]:
    """Of answers and of tiles, for heads of so many channels, as measured on an H200.

    Products in fp32 are not for tensor cores: each element takes an instruction, so tiles are small. So are those of
    wide heads, which must fit into registers.
    """
    small, wide = dtype is torch.float32 or width > 128, width > WIDE
    visited = {"S": 32 if small else 64, "num_warps": 4, "num_stages": 1 if wide else 2 if small else 3}
    return visited, {"M": 16 if wide else 32 if small else 64, **visited}
