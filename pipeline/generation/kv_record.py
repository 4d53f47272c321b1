"""What an open model says about its KV blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.state.blocks import BlockPool
from pipeline.state.kv import KeyValueCache
from pipeline.state.kv_layout import KvLayout


@dataclass(frozen=True, slots=True)
class PlaceRecord:
    """KV blocks of the layers that live in one place, in bytes: held by requests, cached, and all there is room for."""

    layers: int
    used_bytes: int
    cached_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class BlocksRecord:
    """KV blocks that requests hold now, the most that they ever held, and all there are; each is one in every layer.

    `places` are "device", "host" and "disk". The bytes are those of blocks that moved: to the device (H2D), new rows
    from it (D2H), from the spill file and to it.
    """

    used: int
    peak: int
    total: int
    places: dict[str, PlaceRecord]
    bytes_h2d: int
    bytes_d2h: int
    bytes_read: int
    bytes_written: int


def kv_blocks(caches: Sequence[KeyValueCache], pool: BlockPool) -> BlocksRecord:
    """Read all counters now, of the caches of all sections."""
    block_sizes: dict[str, list[int]] = {"device": [], "host": [], "disk": []}
    for memory in [cache.memory for cache in caches]:
        kept = memory.placement
        for place, layers in (("device", kept.device), ("host", kept.host), ("disk", kept.disk)):
            layouts = [memory.layouts[layer] for layer in layers]
            block_sizes[place] += [layout.cell_bytes for layout in layouts if isinstance(layout, KvLayout)]
    places = {
        place: PlaceRecord(len(sizes), *(blocks * sum(sizes) for blocks in (pool.used, pool.cached, pool.blocks)))
        for place, sizes in block_sizes.items()
    }
    moved = [sum(cache.bytes_in for cache in caches), sum(cache.bytes_out for cache in caches)]
    spills = [cache.memory.spill for cache in caches if cache.memory.spill is not None]
    moved += [sum(spill.bytes_read for spill in spills), sum(spill.bytes_written for spill in spills)]
    return BlocksRecord(pool.used, pool.peak, pool.blocks, places, *moved)
