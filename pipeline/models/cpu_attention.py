"""Attention of all tokens of answers of a pass at once on a CPU, over keys and values in blocks: one compiled call.

A token's bits follow from its position and what it sees: parts of its positions have a fixed length, and their sums an
order, whichever thread computes which.
Shape letters in names: T tokens of this pass, R rows that are computed at once, N query heads, H head dim.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from pipeline.formats import cpu_kept, cpu_waiting
from pipeline.formats.cpu_kernels import BF16
from pipeline.formats.cpu_team import do_together, entry
from pipeline.models import cpu_attention_kernels
from pipeline.models.cpu_attention_kernels import LANES, MOST_HEADS
from pipeline.models.layers import Attention
from pipeline.models.pass_rows import CPU_ANSWERS_AT_ONCE, PART, SequenceRows

THREAD_NUMBERS, MOST_THREADS = 1 << 20, 16
"""Channels of keys for which another thread is woken up, 80 us of one, and how many are, as in `cpu_products`."""


@dataclass(frozen=True, slots=True)
class HeadTile:
    """How a kernel goes through heads that share a kv head: so many at once, of so many after filling up; and through
    their channels: so many vectors at once."""

    heads: int
    filled: int
    vectors: int

    @staticmethod
    def of(kind: Attention) -> "HeadTile":
        """As many heads and vectors as their sums fit into 16 registers."""
        group, steps = kind.heads // kind.kv_heads, kind.head_dim // LANES
        heads = min(1 << (group - 1).bit_length(), MOST_HEADS)
        vectors = max(one for one in (1, 2, 4, 8) if steps % one == 0 and one * heads <= LANES)
        return HeadTile(heads, -(-group // heads) * heads, vectors)


def make_ready(kind: Attention) -> None:
    """Compile the kernel, in another process, or load it. Raises ResourceError where it cannot be kept."""
    tile, module = HeadTile.of(kind), cpu_attention_kernels.__name__
    making = f"attend({BF16}, {tile.heads}, {tile.vectors}).compile(SIGNATURE)"
    source = f"from {module} import attend; from {cpu_waiting.__name__} import SIGNATURE; {making}"
    cpu_kept.load(_kernel(kind), cpu_waiting.SIGNATURE, source)


def attend_answers(
    q_TNH: torch.Tensor,
    memory: torch.Tensor,
    sequences: Sequence[SequenceRows],
    kind: Attention,
    sinks_N: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of tokens of answers, each over its own sequence; returns [T, N * H], zeros for all other rows.

    `q_TNH` and `memory`, [B, 2, P, K, H], are in bf16.
    """
    mixed_TA = q_TNH.new_zeros(len(q_TNH), kind.heads * kind.head_dim)
    answers = [
        (row, one.start + row - one.begin, one.blocks_B.data_ptr())
        for one in sequences
        if not one.ended()
        for row in range(one.begin + one.prompts, one.end)
    ]
    for begin in range(0, len(answers), CPU_ANSWERS_AT_ONCE):
        _attend(q_TNH, memory, answers[begin : begin + CPU_ANSWERS_AT_ONCE], kind, sinks_N, mixed_TA)
    return mixed_TA


def _attend(
    q_TNH: torch.Tensor,
    memory: torch.Tensor,
    answers: Sequence[tuple[int, int, int]],
    kind: Attention,
    sinks_N: torch.Tensor | None,
    mixed_TA: torch.Tensor,
) -> None:
    """Fill the rows of `mixed_TA` for these answers: of each the row, its position, and where its block table lies."""
    tile, rows, count, table, parts = HeadTile.of(kind), [row for row, *_ in answers], len(answers), [], 0
    for _, position, blocks in answers:
        first = kind.first_seen(position)
        table.append((position, first, blocks, parts))
        parts -= (first - position - 1) // PART  # rounded up
    table.append((0, 0, 0, parts))
    q_RKGH = q_TNH[rows].float().view(count, kind.kv_heads, -1, kind.head_dim)
    q_RKGH = pad(q_RKGH, (0, 0, 0, tile.filled - q_RKGH.shape[2])).contiguous()
    fp32 = functools.partial(torch.empty, dtype=torch.float32)
    mixed_RA, kept = fp32(count, kind.heads * kind.head_dim), (parts, *q_RKGH.shape[1:3])
    factors = torch.tensor([kind.scale * math.log2(math.e)])
    tensors = (
        torch.tensor(table),
        torch.zeros(count, dtype=torch.int64),
        factors if sinks_N is None else torch.cat((factors, sinks_N.float())),
        q_RKGH,
        fp32(*kept, kind.head_dim),
        fp32(*kept, 2),
        mixed_RA,
    )
    words = (memory.data_ptr(), memory.stride(0) * memory.itemsize, memory.shape[2], PART, count, *kept, kind.head_dim)
    words += (kind.heads // kind.kv_heads, len(tensors[2]) - 1, *[one.data_ptr() for one in tensors])
    numbers = sum(position + 1 - first for position, first, *_ in table[:-1]) * kind.heads * kind.head_dim
    do_together([(entry(_kernel(kind)), *words)], min(1 + numbers // THREAD_NUMBERS, MOST_THREADS, parts))
    mixed_TA[rows] = mixed_RA.to(mixed_TA.dtype)


def _kernel(kind: Attention) -> Any:
    tile = HeadTile.of(kind)
    return cpu_attention_kernels.attend(BF16, tile.heads, tile.vectors)
