"""What an open model says about itself: one frozen record of everything that can wait, and of every byte."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from pipeline.build import Runtime
from pipeline.sequences.batching import Batcher


@dataclass(frozen=True, slots=True)
class ChannelRecord:
    """One queue, by the actor behind it: `starved` is that actor waiting, `blocked` the one before it."""

    depth: int
    peak: int
    starved_seconds: float
    blocked_seconds: float


@dataclass(frozen=True, slots=True)
class RequestsRecord:
    """Requests now, and those that have ended since the model was opened."""

    running: int
    waiting: int
    finished: int
    cancelled: int
    failed: int


@dataclass(frozen=True, slots=True)
class BlocksRecord:
    """KV blocks that requests hold now, the most that they ever held, and all there are."""

    used: int
    peak: int
    total: int


@dataclass(frozen=True, slots=True)
class PrefixRecord:
    """Tokens of admitted prompts that were looked up in the prefix cache, and those found in it.

    `cached_blocks` are the KV blocks that can be found and that no request holds; they are evicted when one needs room.
    """

    queried_tokens: int
    hit_tokens: int
    cached_blocks: int


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Counters since the model was opened; those of actors and queues since the line last started.

    `tokens` were generated, `computed_tokens` passed through the model, those of prompts among them.
    `bytes_read` counts what came from files, `bytes_needed` the tensors and rows in it. `busy_seconds` is the time in
    which an actor had work running, `stalled_seconds` what it waited for messages, room, slots, events and checks.
    `groups_reloaded` had an upload whose event was overdue.
    """

    policy: str
    passes: int
    tokens: int
    computed_tokens: int
    requests: RequestsRecord
    kv_blocks: BlocksRecord
    prefixes: PrefixRecord
    bytes_read: int
    bytes_needed: int
    device_groups_peak: int
    host_groups_peak: int
    groups_reloaded: int
    busy_seconds: dict[str, float]
    stalled_seconds: dict[str, float]
    channels: dict[str, ChannelRecord]

    @classmethod
    def of(cls, runtime: Runtime) -> "ModelStatistics":
        """Read all counters of a runtime now."""
        line = runtime.line.statistics()
        host = line.budgets["host"]
        arrivals = runtime.wired.arrivals
        pool, prefixes = runtime.program.batcher.pool, runtime.program.batcher.prefixes
        return cls(
            policy=runtime.policy.name,
            passes=runtime.program.passes,
            tokens=runtime.program.tokens,
            computed_tokens=runtime.program.computed_tokens,
            requests=_requests(runtime.program.batcher),
            kv_blocks=BlocksRecord(pool.used, pool.peak, pool.blocks),
            prefixes=PrefixRecord(prefixes.queried_tokens, prefixes.hit_tokens, pool.cached),
            bytes_read=runtime.source.bytes_read,
            bytes_needed=runtime.source.bytes_needed,
            device_groups_peak=line.budgets.get("device", host).peak,
            host_groups_peak=host.peak,
            groups_reloaded=0 if arrivals is None else arrivals.reloaded,
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


def _requests(batcher: Batcher) -> RequestsRecord:
    ended = {outcome: batcher.ended[outcome] for outcome in ("finished", "cancelled", "failed")}
    return RequestsRecord(running=batcher.running, waiting=batcher.waiting, **ended)
