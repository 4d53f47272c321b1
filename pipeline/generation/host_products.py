"""What a CPU multiplies for another device: experts in their slots in host memory, and how long that takes.

Letters in names: T rows of a pass, D hidden, P places: the uses of experts by rows, R those of one expert.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from actors.core.budget import Slot
from actors.core.message import READY, Message
from pipeline.devices.memory import HostMemory
from pipeline.formats.matrix import Weights
from pipeline.generation.expert_split import ProductSeconds
from pipeline.groups.catalog import WeightCatalog
from pipeline.models import experts
from pipeline.models.feed_forwards import Experts
from pipeline.models.row_blocks import RowBlocks
from pipeline.system.threads import usable_cores

if TYPE_CHECKING:
    from pipeline.models.grouped_on_cpu import GroupedOnCpu, Laid

logger = logging.getLogger("penstock")
TIMED_ROWS = (1, 2, 4, 16, 64)
"""Numbers of rows for which products are timed."""
TIMED_TIMES, TIMED_AT_ONCE = 5, 8
"""The calls that are timed, each with other experts: with one expert, and with this many at once."""


@dataclass(frozen=True, slots=True)
class _There:
    """Where an expert lies, for a catalog that looks at a slot."""

    place: str
    buffer: HostMemory


class HostProducts:
    """Multiplies by the experts of a call: at once by all whose storage the kernels know, and which few rows use.

    By the others one by one, as torch does.
    """

    def __init__(self, catalog: WeightCatalog, dtype: torch.dtype, least_rows: int) -> None:
        self._catalog = catalog
        self._blocks = RowBlocks(least_rows)
        self._kernels = experts.grouped_on_cpu() if dtype == torch.bfloat16 else None
        self._grouped: GroupedOnCpu | None = None
        self._few_rows = 0
        if self._kernels is not None:
            self._few_rows = self._kernels.FEW_ROWS
            self._grouped = self._kernels.GroupedOnCpu(max(1, min(self._kernels.MOST_THREADS, usable_cores() // 2)))
        self._laid: dict[int, tuple[Weights, Laid | None]] = {}

    def multiply(
        self,
        kind: Experts,
        messages: Sequence[Message[Slot]],
        row_P: torch.Tensor,
        counts: Sequence[int],
        rows_TD: torch.Tensor,
        output_PD: torch.Tensor,
    ) -> None:
        """Multiply by experts that have landed; of the places each has `counts` of its own, one behind the other.

        Place p has row `row_P[p]`, and row p of the output what comes out.
        """
        alike: defaultdict[object, list[tuple[Laid, int, int]]] = defaultdict(list)
        begin = 0
        for message, count in zip(messages, counts, strict=True):
            weights, laid = self._weights(kind, message)
            end = begin + count
            if laid is not None and count <= self._few_rows:
                alike[laid.kind, laid.rounds].append((laid, begin, end))
            else:
                input_RD = self._blocks.fill(rows_TD.index_select(0, row_P[begin:end]))
                output_PD[begin:end] = experts.expert_product(kind, weights, input_RD)[:count]
            begin = end
        if self._grouped is not None:
            for some in alike.values():
                self._grouped.multiply(kind.expert, some, rows_TD, row_P, output_PD)

    def seconds(
        self, kind: Experts, place: str, slots: Sequence[HostMemory], rows_TD: torch.Tensor, output_PD: torch.Tensor
    ) -> ProductSeconds:
        """What products take, with weights that are taken to lie in each of the slots in turn."""
        layer, part = self._catalog.order[0]
        there = [_There(place, one) for one in slots[: TIMED_AT_ONCE * TIMED_TIMES]]
        messages: list[Message[Any]] = [Message(layer, part, 0, one, READY) for one in there]
        each, calls = dict[int, float](), list[float]()
        if self._weights(kind, messages[0])[1] is None:
            logger.warning(
                "experts on the CPU are multiplied one by one, which is slower: kernels for many at once need numba, "
                "bfloat16 and experts in bf16, FP8 or MXFP4, with gate and up apart and no biases"
            )
        for rows in TIMED_ROWS:
            if rows <= len(rows_TD):
                most = max(1, min(TIMED_AT_ONCE, len(output_PD) // rows, len(messages)))
                one, some = (self._call_seconds(kind, messages, count, rows, rows_TD, output_PD) for count in (1, most))
                more = max(some - one, 0.0) / (most - 1) if most > 1 else one
                each[rows] = max(more, *each.values(), 0.0)
                calls.append(max(one - more, 0.0))
        # Scales may have been copied from slots in which nothing was yet, for an expert that may come into one.
        self._laid.clear()
        return ProductSeconds(calls[0], each)

    def _call_seconds(
        self,
        kind: Experts,
        messages: Sequence[Message[Any]],
        count: int,
        rows: int,
        rows_TD: torch.Tensor,
        output_PD: torch.Tensor,
    ) -> float:
        """The least of some calls, each with so many experts, behind a first one."""
        row_P, times = torch.arange(rows).repeat(count), list[float]()
        for begin in range(0, TIMED_TIMES * count, count):
            some, started = [messages[(begin + at) % len(messages)] for at in range(count)], time.perf_counter()
            self.multiply(kind, some, row_P, [rows] * count, rows_TD, output_PD)
            times.append(time.perf_counter() - started)
        return min(times[1:])

    def _weights(self, kind: Experts, message: Message[Any]) -> "tuple[Weights, Laid | None]":
        """Those of an expert in its slot, and where the kernels find them, if they do."""
        weights, slot = self._catalog.weights(message), id(message.at.buffer)
        if self._kernels is None:
            return weights, None
        known = self._laid.get(slot)
        if known is None or known[0] is not weights:
            known = self._laid[slot] = (weights, self._kernels.laid(kind.expert, weights))
        return known

    def close(self) -> None:
        """End the threads, and look at no slot any more."""
        if self._grouped is not None:
            self._grouped.close()
        self._laid.clear()
