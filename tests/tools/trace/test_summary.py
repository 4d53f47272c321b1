"""The figures of a run."""

from collections.abc import Callable

import pytest

from actors.core.trace import Span
from pipeline.tools.trace.journeys import Journeys, computations, pass_starts
from pipeline.tools.trace.recording import Recording
from pipeline.tools.trace.summary import bound_by, busy_seconds, duration, held_back_times, summarize

Record = Callable[..., Recording]


def span(actor: str, started: float, ended: float, what: str = "work", seq: int = 0, group: str = "attn") -> Span:
    return Span(actor, what, 0, group, seq, started, ended)


def test_overlapping_work_counts_once_and_only_between_the_two_moments() -> None:
    spans = [span("disk_reader", 0, 4), span("disk_reader", 2, 6), span("disk_reader", 8, 20), span("checksum", 3, 4)]
    spans += [span("disk_reader", 6, 8, "slot")]
    assert busy_seconds(spans, 1, 10) == {"disk_reader": 7, "checksum": 1}


def test_an_actor_is_held_back_while_it_has_no_slot_or_room_and_does_nothing() -> None:
    spans = [span("disk_reader", 0, 4), span("disk_reader", 2, 6, "slot"), span("disk_reader", 6, 9, "room")]
    spans += [span("disk_reader", 9, 15, "message")]
    assert held_back_times(spans, "disk_reader") == [(4, 9)]


def test_a_link_is_held_back_while_a_group_that_was_read_stands_before_it() -> None:
    spans = [span("disk_reader", 0, 2, seq=seq) for seq in range(2)]
    spans += [span("gpu_uploader", 3, 5, seq=0), span("gpu_uploader", 9, 10, seq=1)]
    assert held_back_times(spans, "gpu_uploader") == [(2, 3), (5, 9)]


@pytest.mark.parametrize(
    ("shares", "bound"),
    [
        ({}, ()),
        ({"disk_reader": 0.84, "compute_scheduler": 0.3}, ()),
        ({"disk_reader": 0.86, "compute_scheduler": 0.85}, ("disk_reader", "compute_scheduler")),
        ({"disk_reader": 0.86, "compute_scheduler": 0.99}, ("compute_scheduler",)),
    ],
)
def test_a_run_is_bound_by_what_is_busy_nearly_all_the_time(shares: dict[str, float], bound: tuple[str, ...]) -> None:
    assert bound_by(shares) == bound


def test_passes_begin_where_a_group_comes_again() -> None:
    order = ["a", "b", "head.0"]
    groups = [*order, *order[:2], "a", *order]
    spans = [span("compute_scheduler", at, at + 1, seq=at, group=group) for at, group in enumerate(groups)]
    spans += [Span("compute_scheduler", "work", 0, "a", 0, 0.5, 1.5, part=1)]
    assert [start.started for start in pass_starts(computations(spans))] == [0, 3, 5, 6]


def test_a_journey_leads_to_the_latest_work_before() -> None:
    spans = [
        span("disk_reader", 0, 1),
        span("disk_reader", 5, 6),
        span("disk_reader", 20, 21),
        span("disk_reader", 9, 9.5, seq=1),
    ]
    computed = span("compute_scheduler", 10, 11)
    assert Journeys(spans).before("disk_reader", computed) is spans[1]
    assert Journeys(spans).before("gpu_uploader", computed) is None


def test_headlines_say_what_bounds_and_what_is_waited_for(record: Record) -> None:
    slow_disk = summarize(record("backpressure", passes=5, attn_io=0.19, ffn_io=0.2))
    assert slow_disk.headline.startswith("Bound by the disk: busy 98% of the time. The device waited ")
    assert slow_disk.headline.endswith(", all of that for the disk.")
    assert slow_disk.shares["disk_reader"] == pytest.approx(5 * 4 * 0.39 / 7.92)
    assert (slow_disk.passes, slow_disk.groups) == (5, 40)
    assert slow_disk.seconds == pytest.approx(5 * 4 * 0.39 + 0.12, rel=0.01)
    balanced = summarize(record("backpressure", passes=5, attn_disk=0.1, ffn_disk=0.1)).headline
    assert balanced.startswith("Bound by the disk, the copies to the device and computing: busy 95% of the time.")
    in_turns = summarize(record("history", passes=5)).headline
    assert in_turns.startswith("Bound by no single resource: disk busy 62%, compute busy 62% of the time.")


def test_the_share_of_each_cause_adds_up_to_the_waiting(record: Record) -> None:
    summary = summarize(record("stage1", check_seconds=0.01, kv_seconds=0.05))
    assert summary.waited_seconds == pytest.approx(summary.seconds * (1 - summary.shares["compute_scheduler"]))
    assert summary.waited["launch"] == pytest.approx(16 * 0.01, rel=0.2)


def waiting_for_requests(*idle: float) -> Recording:
    """One group before each request: read in 1 s, computed for 3 s after the request, while the next one is read."""
    spans, at = [span("disk_reader", 0, 1)], 1.0
    for seq, seconds in enumerate(idle):
        spans += [span("compute_scheduler", at, at + seconds, "request", seq=seq)]
        at += seconds
        spans += [span("compute_scheduler", at, at + 3, seq=seq), span("disk_reader", at + 2.5, at + 3.5, seq=seq + 1)]
        spans += [span("disk_reader", at + 3.5, at + 4, "room", seq=seq + 2)]
        at += 3
    return Recording(tuple(spans), ())


def test_what_comes_before_the_first_request_is_not_measured() -> None:
    summary = summarize(waiting_for_requests(100))
    assert (summary.started, summary.ended, summary.seconds) == (101, 104, 3)
    assert (summary.waited_seconds, summary.still_seconds) == (0, 0)
    assert summary.headline == "Bound by computing: busy 100% of the time. The device never waited."


def test_time_in_which_the_line_stands_still_for_want_of_a_request_is_left_out() -> None:
    summary = summarize(waiting_for_requests(100, 20))
    assert (summary.started, summary.ended) == (101, 127)
    assert summary.still_seconds == 19.5
    assert summary.seconds == 3 + 0.5 + 3
    assert summary.shares == {"disk_reader": pytest.approx(1.5 / 6.5), "compute_scheduler": pytest.approx(6 / 6.5)}
    assert {cause: seconds for cause, seconds in summary.waited.items() if seconds} == {"disk": 0.5}
    assert summary.held_back["disk_reader"] == 0


def test_actors_come_in_line_order_and_others_after_them() -> None:
    spans = (
        span("kv_uploader", 0, 1),
        span("compute_scheduler", 0, 1),
        span("disk_reader", 0, 1),
        span("pinned_stager", 0, 1),
    )
    recording = Recording(spans, (), {"actors": ["disk_reader", "checksum", "compute_scheduler"]})
    assert recording.actors == ("disk_reader", "compute_scheduler", "kv_uploader", "pinned_stager")
    assert summarize(recording).names == {"disk_reader": "disk", "compute_scheduler": "compute", "kv_uploader": "KV in"}
    assert Recording(spans, ()).actors == ("kv_uploader", "compute_scheduler", "disk_reader", "pinned_stager")


def test_a_trace_without_computations_says_so() -> None:
    assert summarize(Recording((), ())).headline == "Nothing was computed in this trace."
    only_read = summarize(Recording((span("disk_reader", 1, 3),), ()))
    assert (only_read.headline, only_read.seconds) == ("Nothing was computed in this trace.", 2)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0000123, "0.01 ms"), (0.00123, "1.23 ms"), (0.0567, "56.7 ms"), (1.5, "1,500 ms"), (1234.5, "1,234.5 s")],
)
def test_durations_are_short(seconds: float, said: str) -> None:
    assert duration(seconds) == said
