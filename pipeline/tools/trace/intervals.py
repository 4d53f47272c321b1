"""Arithmetic on stretches of time. A list of intervals is sorted and they do not overlap, unless said otherwise."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Interval: TypeAlias = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the time that at least one of them covers; they may come in any order and overlap."""
    merged: list[Interval] = []
    for started, ended in sorted(intervals):
        if merged and started <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], ended))
        else:
            merged.append((started, ended))
    return merged


def within(intervals: Sequence[Interval], started: float, ended: float) -> list[Interval]:
    """Return the parts of them between two moments."""
    first = max(0, bisect_right(intervals, (started, float("inf"))) - 1)
    found: list[Interval] = []
    for index in range(first, len(intervals)):
        if intervals[index][0] >= ended:
            break
        left, right = max(intervals[index][0], started), min(intervals[index][1], ended)
        if left < right:
            found.append((left, right))
    return found


def without(intervals: Sequence[Interval], holes: Sequence[Interval]) -> list[Interval]:
    """Return the parts of them that no hole covers."""
    left_over: list[Interval] = []
    for started, ended in intervals:
        for left, right in within(holes, started, ended):
            if started < left:
                left_over.append((started, left))
            started = right
        if started < ended:
            left_over.append((started, ended))
    return left_over


def total_seconds(intervals: Iterable[Interval]) -> float:
    """Return the sum of their lengths."""
    return sum(ended - started for started, ended in intervals)
