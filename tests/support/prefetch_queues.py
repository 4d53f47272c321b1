"""Prefetch queues over a few layers."""

import asyncio
from collections.abc import Mapping

from actors.core.ports import PrefetchPolicy
from actors.core.prefetch import PrefetchQueue
from pipeline.groups.slot_kinds import SlotKinds

PLENTY = {"attn": 9, "ffn": 9}


def order_of(layers: int, slices: int = 0) -> list[tuple[int, str]]:
    halves = [(layer, group) for layer in range(layers) for group in ("attn", "ffn")]
    return [*halves, *((layers, f"head.{index}") for index in range(slices))]


def open_queue(
    policy: PrefetchPolicy, slots: Mapping[str, int] = PLENTY, layers: int = 3, links: int = 99, slices: int = 0
) -> PrefetchQueue:
    """Must be called on a loop."""
    order = order_of(layers, slices)
    kinds = list(SlotKinds.by_order(order, len(slots)).of.values())
    return PrefetchQueue(order, kinds, slots, policy, links=links, clock=asyncio.get_running_loop().time)
