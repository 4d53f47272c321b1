"""A gate that times passes with and without something that pays on some machines only, and chooses."""

import statistics
from collections import defaultdict
from collections.abc import Sequence

RESTS = 256
"""Passes for which a choice holds, until both ways are timed again."""


class PassGate:
    """Opens for a pass unless passes of about as many rows have taken less time with the gate closed.

    What goes through the gate, as look-ahead or experts on the CPU, takes cores and the interpreter lock from launches
    and copies. Whether it saves more than it costs follows from the machine, so it is timed there.

    Args:
        tried: how many passes are timed with an open gate, and how many with a closed one, before one is chosen.
        in_a_row: how many passes are timed before the gate changes; it divides `tried`. Two gates of one model need
            different numbers: if both changed at once, each would time what the other does.
    """

    def __init__(self, tried: int, in_a_row: int) -> None:
        self._trials, self._in_a_row = tried, in_a_row
        self._tried = defaultdict[int, list[tuple[bool, float, int]]](list)
        self._decided: dict[int, tuple[bool, int]] = {}
        self._under_way: tuple[int, bool] | None = None

    def opens(self, rows: int) -> bool:
        """Whether the gate is open for a pass of so many rows that begins now."""
        size = rows.bit_length()
        pays, rests = self._decided.get(size, (False, 0))
        if rests:
            self._decided[size], self._under_way = (pays, rests - 1), None
            return pays
        self._under_way = size, len(self._tried[size]) // self._in_a_row % 2 == 0
        return self._under_way[1]

    def took(self, seconds: float, reads: int = 0) -> None:
        """Take note of the time of the pass that has begun last, and of how many experts it had read."""
        if self._under_way is None:
            return
        size, goes = self._under_way
        self._under_way = None
        tried = self._tried[size]
        tried.append((goes, seconds, reads))
        if len(tried) == 2 * self._trials:
            self._decided[size] = _pays(self._tried.pop(size)), RESTS


def _pays(tried: Sequence[tuple[bool, float, int]]) -> bool:
    """Whether passes with an open gate took no longer, when the time that goes with what each has read is left out."""
    counts = [reads for _, _, reads in tried]
    share = 0.0
    if len({*counts}) > 1:
        share = statistics.linear_regression(counts, [seconds for _, seconds, _ in tried]).slope
    gone, others = ([seconds - share * reads for goes, seconds, reads in tried if goes is way] for way in (True, False))
    return statistics.median(gone) <= statistics.median(others)
