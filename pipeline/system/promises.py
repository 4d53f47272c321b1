"""Memory that open models were promised and have not touched yet, which no other model may plan with."""

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.system.memory_plan import Holding, MemoryPlan


class Holder(Protocol):
    """A device as this page sees it: it hands out the memory of one model, and frees it."""

    @property
    def pools(self) -> Mapping[str, str]:
        """Which memory each place of a plan takes from: two places, and two devices, may take from one."""

    def touched_bytes(self, pool: str) -> int:
        """Return how much of the memory that it has handed out occupies this pool by now."""


@dataclass(frozen=True, slots=True)
class _Promise:
    folder: Path
    plan: MemoryPlan


promising = threading.RLock()
"""Held from planning to `promise`, so that models that are opened at once are not promised the same bytes."""
_promises: "weakref.WeakKeyDictionary[Holder, _Promise]" = weakref.WeakKeyDictionary()


def promise(holder: Holder, folder: Path, plan: MemoryPlan) -> None:
    """Keep the memory of a plan for the model in `folder`, until `give_back`."""
    with promising:
        _promises[holder] = _Promise(folder, plan)


def give_back(holder: Holder) -> None:
    """Let other models plan with what was promised; harmless where nothing was."""
    with promising:
        _promises.pop(holder, None)


def promised_elsewhere(pools: Mapping[str, str]) -> list[Holding]:
    """Return what each open model may still take of the memory of these places, as holdings of a plan beside theirs."""
    with promising:
        promises = list(_promises.items())
    return [
        Holding(f"promised to the open model {promise.folder}", place, nbytes, "")
        for holder, promise in promises
        for place, pool in pools.items()
        if (nbytes := _own_bytes(holder, promise, pool) - holder.touched_bytes(pool)) > 0
    ]


def open_models_take(pool: str) -> tuple[int, int]:
    """Return what all open models were promised of a memory, and what of it occupies the memory by now."""
    with promising:
        promises = list(_promises.items())
    promised = sum(_own_bytes(holder, promise, pool) for holder, promise in promises)
    return promised, sum(holder.touched_bytes(pool) for holder, _ in promises)


def _own_bytes(holder: Holder, promise: _Promise, pool: str) -> int:
    """The bytes of holdings that a setting changes: all others were there before, or are there by now."""
    places = [place for place, other in holder.pools.items() if other == pool]
    return sum(one.nbytes for one in promise.plan.holdings if one.place in places and one.knob)
