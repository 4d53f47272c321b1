import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RequestError
from pipeline.text.stops import StopSearch, StopStrings

# Few letters, so that stop strings overlap, contain each other and nearly happen all the time.
STOPS = st.lists(st.text("ab\u4e16", min_size=1, max_size=5), max_size=6)
CHUNKS = st.lists(st.text("ab\u4e16c", max_size=6), max_size=12)


def search(stops: list[str]) -> StopSearch:
    return StopSearch(StopStrings(stops))


def cut(stops: list[str], text: str) -> str | None:
    """What comes before the stop string that completes first (of several the longest), by trying every place."""
    for end in range(len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return text[: end - max(map(len, matches))]
    return None


def safe_length(stops: list[str], text: str) -> int:
    """How much of a text without a stop string can be emitted, by trying every beginning of every stop string."""
    beginnings = [stop[:length] for stop in stops for length in range(len(stop))]
    return len(text) - max((len(beginning) for beginning in beginnings if text.endswith(beginning)), default=0)


@settings(deadline=None, max_examples=500)
@given(stops=STOPS, chunks=CHUNKS)
def test_any_stream_is_cut_as_the_oracle_cuts_it(stops: list[str], chunks: list[str]) -> None:
    filter_, emitted, seen = search(stops), "", ""
    for chunk in chunks:
        text, stopped = filter_.push(chunk)
        emitted, seen = emitted + text, seen + chunk
        expected = cut(stops, seen)
        assert stopped == (expected is not None)
        if expected is not None:
            assert emitted == expected
            assert filter_.push("more ab") == ("", True)
            assert filter_.flush() == ""
            return
        assert emitted == seen[: safe_length(stops, seen)]  # neither too much nor too little
    assert emitted + filter_.flush() == seen


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["abcd", "bc"], "abc", "a"),
        (["abc", "c"], "abc", ""),
        (["</s>", "</stop>"], "text </st</s>", "text </st"),
        (["aab"], "aaab", "a"),
        (["\n\n"], "a\n\n\n", "a"),
        (["stop"], "don't sto", None),
    ],
)
def test_overlapping_stops_letter_by_letter(stops: list[str], text: str, expected: str | None) -> None:
    filter_ = search(stops)
    pushed = [filter_.push(letter) for letter in text]
    assert pushed[-1][1] == (expected is not None)
    emitted = "".join(part for part, _ in pushed) + filter_.flush()
    assert emitted == (text if expected is None else expected)


def test_without_stop_strings_everything_passes_at_once() -> None:
    filter_ = search([])
    assert filter_.push("anything") == ("anything", False)
    assert filter_.flush() == ""


def test_a_thousand_stop_strings_cost_no_more_than_one() -> None:
    stops = ["a" * 40 + f"{number:04d}" for number in range(1000)]
    text = "a" * 100_000
    started = time.process_time()
    filter_ = search(stops)
    assert filter_.push(text) == ("a" * (len(text) - 40), False)
    assert filter_.push("0999 and more") == ("", True)
    assert time.process_time() - started < 1


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="stop string 1 is empty"):
        StopStrings(["ok", ""])


def test_searches_of_one_call_share_one_automaton_and_follow_their_own_texts() -> None:
    stop_strings = StopStrings(["END"])
    first, other = StopSearch(stop_strings), StopSearch(stop_strings)
    assert (first.push("a E"), other.push("EN")) == (("a ", False), ("", False))
    assert (first.push("N."), other.push("D")) == (("EN.", False), ("", True))
    assert first.push("END") == ("", True)


def test_stop_strings_make_nothing_before_there_is_text() -> None:
    stop_strings = StopStrings(["x" * 1024] * 16)
    waiting = StopSearch(stop_strings)
    assert "automaton" not in vars(stop_strings)
    assert waiting.push("xx") == ("", False)
    assert "automaton" in vars(stop_strings)
