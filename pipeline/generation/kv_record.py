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


@dataclass(frozen=True, slots=True)
class SectionKvRecord:
    """KV blocks of the layers of one section, by place: how many layers, and the bytes of one block in all of them. The
    bytes that moved are as in `BlocksRecord`.
    """

    layers: dict[str, int]
    block_bytes: dict[str, int]
    bytes_h2d: int
    bytes_d2h: int
    bytes_read: int
    bytes_written: int


def section_kv(cache: KeyValueCache) -> SectionKvRecord:
    """Read all counters now."""
    memory = cache.memory
    kept, spill, layouts = memory.placement, memory.spill, memory.layouts
    sizes = {
        place: [layout.cell_bytes for layout in map(layouts.__getitem__, layers) if isinstance(layout, KvLayout)]
        for place, layers in (("device", kept.device), ("host", kept.host), ("disk", kept.disk))
    }
    return SectionKvRecord(
        {place: len(each) for place, each in sizes.items()},
        {place: sum(each) for place, each in sizes.items()},
        cache.bytes_in,
        cache.bytes_out,
        *((0, 0) if spill is None else (spill.bytes_read, spill.bytes_written)),
    )


def kv_blocks(sections: Sequence[SectionKvRecord], pool: BlockPool) -> BlocksRecord:
    """Those of all sections: each block of the pool is one in every layer."""
    places = {}
    for place in ("device", "host", "disk"):
        block_bytes = sum(one.block_bytes[place] for one in sections)
        sizes = (blocks * block_bytes for blocks in (pool.used, pool.cached, pool.blocks))
        places[place] = PlaceRecord(sum(one.layers[place] for one in sections), *sizes)
    moved = ("bytes_h2d", "bytes_d2h", "bytes_read", "bytes_written")
    sums = (sum(getattr(one, name) for one in sections) for name in moved)
    return BlocksRecord(pool.used, pool.peak, pool.blocks, places, *sums)
