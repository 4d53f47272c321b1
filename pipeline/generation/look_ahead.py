"""Whether passes ask the routers of the next layers beforehand: as the settings say, or where that is faster."""

import time

from actors.core.expert_store import ExpertStore
from pipeline.engine.expert_line import ExpertLine
from pipeline.generation.pass_gate import PassGate

TRIED, IN_A_ROW = 16, 2
"""Passes that are timed with look-ahead, and as many without: their reads differ, and so does the rate of a disk."""


class LookAhead:
    """Says for each pass of a model with so many `layers` of experts whether it looks ahead.

    Where experts are large, guesses that are right half of the time pay; where reading one takes hardly longer than
    asking for it, they cost more than they save. So "auto" times passes.

    Attributes:
        asks: whether the pass that has begun looks ahead.
        asked: how many layers of this pass have asked for their experts.
    """

    def __init__(self, store: ExpertStore, layers: int, *, always: bool, gated: bool) -> None:
        self._store, self._layers = store, layers
        self._gate = PassGate(TRIED, IN_A_ROW) if gated else None
        self.asks = always
        self.asked = 0
        self._began, self._misses = 0.0, 0

    @classmethod
    def of(cls, line: ExpertLine, setting: bool | str) -> "LookAhead":
        """By `lookahead` of the settings. "auto" looks ahead where experts are read from the disk."""
        layers = len({layer for layer, _ in line.room.catalog.order})
        reads = sum(line.budgets[0].slots.values()) < line.room.count
        return cls(line.store, layers, always=setting is True, gated=setting == "auto" and reads)

    def begin(self, rows: int) -> None:
        """A pass of so many rows begins."""
        self.asked, self._began, self._misses = 0, time.perf_counter(), self._store.misses
        if self._gate is not None:
            self.asks = self._gate.opens(rows)

    def end(self) -> None:
        """The results of the pass are there."""
        if self._gate is not None and self.asked == self._layers:  # a pass that was abandoned tells nothing
            self._gate.took(time.perf_counter() - self._began, self._store.misses - self._misses)
