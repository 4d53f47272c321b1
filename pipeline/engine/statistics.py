"""An open line describes itself by one frozen record of everything that can wait, and of every byte."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from actors.core.budget import BudgetStatistics
from actors.core.channel import ChannelStatistics


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """Counters since the line was opened; those of actors and queues since it last started.

    `reading` tells how the disk is read, and why. `bytes_read` counts what came from files, `bytes_needed` the tensors
    and rows in it, `bytes_uploaded` the weights that were copied to the device. `busy_seconds` is the time in which an
    actor had work running, `stalled_seconds` what it waited for messages, room, slots, events and checks.
    `groups_reloaded` had an upload whose event was overdue. `resident_groups` stay, by place, and move no more;
    `moving_groups` come to the device anew in every pass. `channels` are the queues, by the actor behind each, and
    `budgets` the slots for what moves, by place.
    """

    policy: str
    reading: str
    bytes_read: int
    bytes_needed: int
    bytes_uploaded: int
    checksums: ChecksumsRecord
    device_groups_peak: int
    host_groups_peak: int
    groups_reloaded: int
    resident_groups: dict[str, int]
    moving_groups: int
    busy_seconds: dict[str, float]
    stalled_seconds: dict[str, float]
    channels: dict[str, ChannelStatistics]
    budgets: dict[str, BudgetStatistics]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and numbers."""
        return dataclasses.asdict(self)
