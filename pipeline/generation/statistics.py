"""What an open model says about itself: one frozen record of everything that can wait, and of every byte."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from pipeline.generation.admission import Admission
from pipeline.generation.build import ModelRuntime
from pipeline.reading.checksums import Checking, Checksums
from pipeline.state.blocks import BlockPool
from pipeline.state.kv import KeyValueCache


@dataclass(frozen=True, slots=True)
class ChannelRecord:
    """One queue, by the actor behind it: `starved` is that actor waiting, `blocked` the one before it."""

    depth: int
    peak: int
    starved_seconds: float
    blocked_seconds: float


@dataclass(frozen=True, slots=True)
class RequestsRecord:
    """Requests now, and those that have ended since the model was opened.

    Those of `tokenizing` calls, whose prompts are still made into token ids, are not among them yet. `paused` are
    those, running or waiting, whose streams nobody reads. `passes_not_shared` counts the passes for which
    some waited, by the setting that kept them from sharing it.
    """

    tokenizing: int
    running: int
    waiting: int
    paused: int
    finished: int
    cancelled: int
    failed: int
    passes_not_shared: dict[str, int]


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
class PrefixRecord:
    """Tokens of admitted prompts that were looked up in the prefix cache, and those found in it.

    `cached_blocks` are the KV blocks that can be found and that no request holds; they are evicted when one needs room.
    """

    queried_tokens: int
    hit_tokens: int
    cached_blocks: int


@dataclass(frozen=True, slots=True)
class ChecksumsRecord:
    """Weight groups, embedding rows and bytes of both that were summed up as they came from the disk.

    `checking` tells whether that is done, and why. `mismatches` differed from their first read.
    """

    checking: str
    groups: int
    rows: int
    nbytes: int
    mismatches: int


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Counters since the model was opened; those of actors and queues since the line last started.

    `tokens` were generated, `computed_tokens` passed through the model, those of prompts among them; `tokens_per_pass`
    is the mean of the latter.
    `reading` tells how the disk is read, and why. `bytes_read` counts what came from files, `bytes_needed` the tensors
    and rows in it. `busy_seconds` is the time in which an actor had work running, `stalled_seconds` what it waited for
    messages, room, slots, events and checks.
    `groups_reloaded` had an upload whose event was overdue. `resident_groups` stay, by place, and move no more;
    `moving_groups` come to the device anew in every pass.
    """

    policy: str
    reading: str
    passes: int
    tokens: int
    computed_tokens: int
    tokens_per_pass: float
    requests: RequestsRecord
    kv_blocks: BlocksRecord
    prefixes: PrefixRecord
    bytes_read: int
    bytes_needed: int
    checksums: ChecksumsRecord
    device_groups_peak: int
    host_groups_peak: int
    groups_reloaded: int
    resident_groups: dict[str, int]
    moving_groups: int
    busy_seconds: dict[str, float]
    stalled_seconds: dict[str, float]
    channels: dict[str, ChannelRecord]

    @classmethod
    def of(cls, runtime: ModelRuntime) -> "ModelStatistics":
        """Read all counters of a runtime now."""
        line = runtime.wired.statistics()
        places = [place.name for place in runtime.device.places]
        arrivals = runtime.wired.arrivals
        pool, prefixes = runtime.admission.batcher.pool, runtime.admission.batcher.prefixes
        return cls(
            policy=runtime.policy.name,
            reading=str(runtime.reading),
            passes=runtime.program.passes,
            tokens=runtime.program.tokens,
            computed_tokens=runtime.program.computed_tokens,
            tokens_per_pass=runtime.program.computed_tokens / max(1, runtime.program.passes),
            requests=_requests(runtime.admission),
            kv_blocks=_kv_blocks(runtime.cache, pool),
            prefixes=PrefixRecord(prefixes.queried_tokens, prefixes.hit_tokens, pool.cached),
            bytes_read=runtime.source.bytes_read,
            bytes_needed=runtime.source.bytes_needed,
            checksums=_checksums(runtime.checking, runtime.source.checksums),
            device_groups_peak=line.budgets[places[-1]].peak,
            host_groups_peak=line.budgets[places[0]].peak,
            groups_reloaded=0 if arrivals is None else arrivals.reloaded,
            resident_groups={place: line.budgets[place].residents for place in reversed(places)},
            moving_groups=runtime.moving_groups,
            busy_seconds={name: actor.busy_seconds for name, actor in line.actors.items()},
            stalled_seconds={name: actor.stalled_seconds for name, actor in line.actors.items()},
            channels={
                name: ChannelRecord(channel.depth, channel.peak, channel.starved_seconds, channel.blocked_seconds)
                for name, channel in line.channels.items()
            },
        )

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and numbers."""
        return dataclasses.asdict(self)


def _requests(admission: Admission) -> RequestsRecord:
    batcher = admission.batcher
    ended = {outcome: batcher.ended[outcome] for outcome in ("finished", "cancelled", "failed")}
    return RequestsRecord(
        tokenizing=admission.tokenizing_calls,
        running=batcher.running,
        waiting=batcher.waiting,
        paused=batcher.paused,
        passes_not_shared=dict(batcher.shortages.passes),
        **ended,
    )


def _checksums(checking: Checking, checksums: Checksums | None) -> ChecksumsRecord:
    if checksums is None:
        return ChecksumsRecord(str(checking), 0, 0, 0, 0)
    return ChecksumsRecord(str(checking), checksums.groups, checksums.rows, checksums.nbytes, checksums.mismatches)


def _kv_blocks(cache: KeyValueCache, pool: BlockPool) -> BlocksRecord:
    kept, block_bytes = cache.memory.placement, cache.memory.layout.block_bytes
    places = {
        place: PlaceRecord(
            layers,
            *(layers * blocks * block_bytes for blocks in (pool.used, pool.cached, pool.blocks)),
        )
        for place, layers in (("device", len(kept.device)), ("host", len(kept.host)), ("disk", len(kept.disk)))
    }
    spill = cache.memory.spill
    disk_bytes = (0, 0) if spill is None else (spill.bytes_read, spill.bytes_written)
    return BlocksRecord(pool.used, pool.peak, pool.blocks, places, cache.bytes_in, cache.bytes_out, *disk_bytes)
