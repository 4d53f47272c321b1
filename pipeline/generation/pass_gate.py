"""A gate that times passes: whether something pays that helps some machines and costs others."""

import statistics
from collections import defaultdict
from collections.abc import Sequence

RESTS = 256
"""Passes for which a choice holds, until both ways are timed again."""


class PassGate:
    """Says for each pass whether it goes a certain way: not where passes without that have taken less time.

    What that costs beside what it saves follows from the machine alone: it takes cores, and the interpreter lock, from
    those who launch and copy. Passes of about as many rows are compared.

    Args:
        tried: how many passes are timed with it, and as many without, before one way is chosen.
        in_a_row: how many of these go one way before others go the other; it divides `tried`. Two gates of one model
            need different ones, as each would time what the other does.
    """

    def __init__(self, tried: int, in_a_row: int) -> None:
        self._trials, self._in_a_row = tried, in_a_row
        self._tried = defaultdict[int, list[tuple[bool, float, int]]](list)
        self._decided: dict[int, tuple[bool, int]] = {}
        self._under_way: tuple[int, bool] | None = None

    def opens(self, rows: int) -> bool:
        """Whether a pass of so many rows, that begins now, goes that way."""
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
    """Whether passes that went that way took no longer, by what they took beyond their share for what was read."""
    counts = [reads for _, _, reads in tried]
    share = 0.0
    if len({*counts}) > 1:
        share = statistics.linear_regression(counts, [seconds for _, seconds, _ in tried]).slope
    gone, others = ([seconds - share * reads for goes, seconds, reads in tried if goes is way] for way in (True, False))
    return statistics.median(gone) <= statistics.median(others)
