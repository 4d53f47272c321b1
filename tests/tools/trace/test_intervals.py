"""Stretches of time, against sets of whole seconds."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.tools.trace.intervals import Interval, total_seconds, union, within, without

PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=8).map(
    lambda pairs: [(float(started), float(started + length)) for started, length in pairs]
)


def seconds(intervals: list[Interval]) -> set[int]:
    return {second for started, ended in intervals for second in range(int(started), int(ended))}


def is_tidy(intervals: list[Interval]) -> bool:
    return all(left[1] <= right[0] for left, right in pairwise(intervals)) and all(
        started < ended for started, ended in intervals
    )


@given(PAIRS)
def test_a_union_covers_what_any_of_them_covers_once(pairs: list[Interval]) -> None:
    merged = union(pairs)
    assert is_tidy(merged)
    assert seconds(merged) == seconds(pairs)
    assert total_seconds(merged) == len(seconds(pairs))


@given(PAIRS, st.integers(-2, 40), st.integers(0, 20))
def test_within_keeps_what_lies_between_two_moments(pairs: list[Interval], started: int, length: int) -> None:
    kept = within(union(pairs), started, started + length)
    assert is_tidy(kept)
    assert seconds(kept) == seconds(pairs) & set(range(started, started + length))


@given(PAIRS, PAIRS)
def test_without_keeps_what_no_hole_covers(pairs: list[Interval], holes: list[Interval]) -> None:
    kept = without(union(pairs), union(holes))
    assert is_tidy(kept)
    assert seconds(kept) == seconds(pairs) - seconds(holes)
