"""What the device waited for: every rule on spans made by hand, and simulated runs with a known answer."""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core.trace import Span
from pipeline.tools.trace.gaps import CAUSES, find_gaps
from pipeline.tools.trace.intervals import total_seconds, union, within, without
from pipeline.tools.trace.recording import Recording
from pipeline.tools.trace.summary import summarize

Record = Callable[..., Recording]
DISK, LINK, COMPUTE = "disk_reader", "gpu_uploader", "compute_scheduler"


def work(actor: str, seq: int, started: float, ended: float, part: int = 0, group: str = "attn") -> Span:
    return Span(actor, "work", seq, group, seq, started, ended, slot=0, part=part)


def wait(actor: str, what: str, seq: int, started: float, ended: float) -> Span:
    return Span(actor, what, seq, "attn", seq, started, ended)


def pieces(*spans: Span) -> list[tuple[str, float, float]]:
    """Of the gap from 10 to 20 between the computations of groups 0 and 1."""
    around = (work(COMPUTE, 0, 0, 10), work(COMPUTE, 1, 20, 25))
    (gap,) = find_gaps([*spans, *around])
    assert (gap.started, gap.ended, gap.layer, gap.seq) == (10, 20, 1, 1)
    return [(piece.cause, piece.started, piece.ended) for piece in gap.pieces]


def test_a_group_that_was_there_is_waited_for_by_the_host() -> None:
    assert pieces() == [("launch", 10, 20)]
    assert pieces(work(DISK, 1, 1, 3), work(LINK, 1, 4, 6)) == [("launch", 10, 20)]
    assert pieces(work(DISK, 1, 1, 3), wait(COMPUTE, "check", 1, 9, 20)) == [("launch", 10, 20)]


def test_each_hop_of_the_group_counts_while_it_is_the_last_to_come() -> None:
    assert pieces(work(DISK, 1, 8, 13), work(LINK, 1, 14, 19)) == [
        ("disk", 10, 13),
        ("launch", 13, 14),
        ("H2D", 14, 19),
        ("launch", 19, 20),
    ]
    assert pieces(work(DISK, 1, 5, 20)) == [("disk", 10, 20)]
    assert pieces(work(DISK, 1, 5, 15), work(LINK, 1, 15, 20)) == [("disk", 10, 15), ("H2D", 15, 20)]


def test_a_group_that_is_compared_with_its_first_read_still_comes_from_the_disk() -> None:
    assert pieces(work(DISK, 1, 8, 13), work("pinned_stager", 1, 13, 15), work(LINK, 1, 15, 19)) == [
        ("disk", 10, 15),
        ("H2D", 15, 19),
        ("launch", 19, 20),
    ]
    assert pieces(work(DISK, 1, 8, 13), work("pinned_stager", 1, 13, 15)) == [("disk", 10, 15), ("launch", 15, 20)]
    paced = (work(DISK, 0, 0, 5), work(DISK, 1, 5, 15), work("pinned_stager", 1, 15, 17), work(LINK, 1, 17, 20))
    assert pieces(*paced) == [("disk", 10, 20)]


def test_a_copy_counts_for_the_disk_where_reads_without_a_pause_set_the_pace() -> None:
    read, copy = work(DISK, 1, 5, 15), work(LINK, 1, 15, 20)
    assert pieces(work(DISK, 0, 0, 5), read, copy) == [("disk", 10, 20)]
    assert pieces(work(DISK, 0, 0, 4.6), read, copy) == [("disk", 10, 20)], "a pause that Python makes"
    assert pieces(work(DISK, 0, 0, 4), read, copy) == [("disk", 10, 15), ("H2D", 15, 20)], "nobody had asked for it"
    late = work(LINK, 1, 17, 20)
    assert pieces(work(DISK, 0, 0, 5), read, work(LINK, 0, 6, 17), late) == [("disk", 10, 15), ("H2D", 15, 20)]


def test_what_the_device_waits_for_is_what_binds_the_run(record: Record) -> None:
    """A copy of 20 ms behind each read of 30: ten times faster copies would gain nothing but the first."""
    options = {"layers": 20, "attn": 0.01, "ffn": 0.01, "attn_disk": 0.03, "ffn_disk": 0.03}
    waited = summarize(record("backpressure", attn_io=0.02, ffn_io=0.02, **options)).waited
    assert waited["disk"] > 0.9 * sum(waited.values())
    swapped = summarize(record("backpressure", attn_io=0.04, ffn_io=0.04, **options)).waited
    assert swapped["H2D"] > 0.9 * sum(swapped.values())


def test_a_group_that_was_read_waits_for_the_link_while_that_works_and_for_a_slot_while_the_uploader_has_none() -> None:
    read, upload = work(DISK, 1, 2, 9), work(LINK, 1, 18, 20)
    assert pieces(read, upload, work(LINK, 7, 5, 13), wait(LINK, "slot", 1, 9, 16)) == [
        ("H2D", 10, 13),
        ("device slot", 13, 16),
        ("launch", 16, 18),
        ("H2D", 18, 20),
    ]


def test_a_group_that_nobody_read_yet_stands_behind_other_reads_or_waits_for_a_host_slot() -> None:
    read = work(DISK, 1, 17, 20)
    assert pieces(read, work(DISK, 7, 9, 12), wait(DISK, "slot", 1, 11, 16)) == [
        ("disk", 10, 12),
        ("host slot", 12, 16),
        ("launch", 16, 17),
        ("disk", 17, 20),
    ]
    assert pieces(read, work(LINK, 7, 9, 12), wait(LINK, "slot", 8, 12, 15), wait(DISK, "room", 0, 5, 15)) == [
        ("H2D", 10, 12),
        ("device slot", 12, 15),
        ("launch", 15, 17),
        ("disk", 17, 20),
    ]


def test_other_groups_count_only_for_the_hop_that_the_group_stands_before() -> None:
    reads_and_copies = (work(DISK, 7, 9, 16), work(LINK, 8, 9, 16))
    assert pieces(work(DISK, 1, 16, 18), work(LINK, 1, 18, 20), *reads_and_copies) == [
        ("disk", 10, 20),
    ]
    assert pieces(work(DISK, 1, 5, 9), work(LINK, 1, 18, 20), reads_and_copies[0]) == [
        ("launch", 10, 18),
        ("H2D", 18, 20),
    ]


def test_what_others_do_does_not_matter_once_the_group_is_there() -> None:
    others = (work(DISK, 2, 8, 20), work(LINK, 2, 9, 20), wait(DISK, "slot", 3, 8, 20), wait(LINK, "slot", 2, 8, 20))
    assert pieces(work(DISK, 1, 1, 3), work(LINK, 1, 4, 6), *others) == [("launch", 10, 20)]


def kv(layer: int, started: float, ended: float, actor: str = "kv_uploader") -> Span:
    return Span(actor, "work", layer, "kv", 0, started, ended)


def test_kv_blocks_count_only_if_they_came_last() -> None:
    read = work(DISK, 1, 9, 14)
    assert pieces(read, kv(0, 9, 13), kv(1, 13, 18)) == [("KV", 10, 18), ("launch", 18, 20)]
    assert pieces(read, kv(1, 15, 20)) == [("disk", 10, 14), ("launch", 14, 15), ("KV", 15, 20)]
    assert pieces(read, kv(1, 9, 12)) == [("disk", 10, 14), ("launch", 14, 20)]
    assert pieces(read, kv(1, 13, 16), kv(2, 16, 20)) == [("disk", 10, 13), ("KV", 13, 16), ("launch", 16, 20)]
    assert pieces(read, kv(2, 9, 20), kv(1, 9, 20, "kv_swapper")) == [("disk", 10, 14), ("launch", 14, 20)]


def test_without_a_request_there_was_nothing_to_start() -> None:
    read, request = work(DISK, 1, 9, 12), wait(COMPUTE, "request", 1, 11, 17)
    assert pieces(read, request) == [("disk", 10, 12), ("start", 12, 17), ("launch", 17, 20)]


def test_a_stage_of_the_users_counts_for_the_groups_that_it_works_on_and_that_stand_behind_it() -> None:
    read, upload = work(DISK, 1, 5, 9), work(LINK, 1, 18, 20)
    assert pieces(read, work("checksum", 0, 9, 12), work("checksum", 1, 12, 17), upload, work(LINK, 7, 11, 14)) == [
        ("stage", 10, 11),
        ("H2D", 11, 12),
        ("stage", 12, 17),
        ("launch", 17, 18),
        ("H2D", 18, 20),
    ]
    assert pieces(read, work(LINK, 1, 10, 12), work("decoder", 1, 12, 20)) == [("H2D", 10, 12), ("stage", 12, 20)]


def test_a_line_that_ran_anew_is_not_mistaken_for_the_run_before() -> None:
    first = [work(DISK, 1, 0, 1), work(COMPUTE, 1, 1, 2)]
    again = [work(DISK, 1, 6, 8), work(COMPUTE, 1, 8, 9)]
    second = find_gaps([*first, *again])[1]
    assert [(piece.cause, piece.started, piece.ended) for piece in second.pieces] == [("launch", 2, 6), ("disk", 6, 8)]


def test_nothing_waits_while_any_micro_batch_computes() -> None:
    spans = [
        work(COMPUTE, 0, 0, 10),
        work(COMPUTE, 0, 10, 20, part=1),
        work(COMPUTE, 1, 12, 15),
        work(COMPUTE, 2, 20, 30),
    ]
    assert find_gaps(spans) == []
    (gap,) = find_gaps([*spans, work(COMPUTE, 2, 33, 40, part=1)])
    assert (gap.started, gap.ended, gap.part) == (30, 33, 1)


def test_rounding_is_no_gap() -> None:
    assert find_gaps([work(COMPUTE, 0, 0, 10), work(COMPUTE, 1, 10 + 2e-9, 20)]) == []
    assert find_gaps([]) == []
    assert pieces(work(DISK, 1, 9, 20 - 2e-9)) == [("disk", 10, 20)]


TIMES = st.tuples(st.integers(0, 60), st.integers(1, 12))
ANY_SPAN = st.builds(
    lambda actor, what, seq, times: Span(
        actor, what if actor != "kv_uploader" else "work", seq, "kv" if actor == "kv_uploader" else "attn", seq,
        float(times[0]), float(sum(times)),
    ),
    st.sampled_from([DISK, LINK, COMPUTE, COMPUTE, "kv_uploader", "checksum"]),
    st.sampled_from(["work", "work", "work", "slot", "check", "request"]),
    st.integers(0, 5),
    TIMES,
)  # fmt: skip


@given(st.lists(ANY_SPAN, max_size=25))
def test_gaps_are_all_the_time_without_computing_and_their_pieces_fill_them(spans: list[Span]) -> None:
    computing = union((span.started, span.ended) for span in spans if span.actor == COMPUTE and span.what == "work")
    gaps = find_gaps(spans)
    if not computing:
        assert gaps == []
        return
    started = min(span.started for span in spans)
    idle = without([(started, computing[-1][1])], computing)
    assert [(gap.started, gap.ended) for gap in gaps] == idle
    for gap in gaps:
        assert (gap.pieces[0].started, gap.pieces[-1].ended) == (gap.started, gap.ended)
        for before, after in pairwise(gap.pieces):
            assert before.ended == after.started
            assert before.cause != after.cause
        assert all(piece.cause in CAUSES and piece.started < piece.ended for piece in gap.pieces)


def seconds_by_cause(recording: Recording) -> Mapping[str, float]:
    sums: Counter[str] = Counter()
    for gap in find_gaps(recording.spans):
        for piece in gap.pieces:
            sums[piece.cause] += piece.ended - piece.started
    return sums


POLICIES = ["history1", "history", "stage1", "stage2", "stage3", "backpressure"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_slow_disk_is_the_cause_of_every_gap(record: Record, policy: str) -> None:
    recording = record(policy, attn_io=0.4, ffn_io=0.5)
    assert seconds_by_cause(recording).keys() == {"disk"}
    two_hops = seconds_by_cause(record(policy, attn_disk=0.4, ffn_disk=0.5, attn_io=1e-4, ffn_io=1e-4))
    assert two_hops["disk"] > 0.99 * sum(two_hops.values()) > 3


@pytest.mark.parametrize("policy", POLICIES)
def test_a_slow_link_is_the_cause_of_every_gap(record: Record, policy: str) -> None:
    causes = seconds_by_cause(record(policy, attn_disk=1e-4, ffn_disk=1e-4, attn_io=0.4, ffn_io=0.5))
    assert causes["H2D"] > 0.99 * sum(causes.values()) > 3


@pytest.mark.parametrize("policy", ["history1", "stage1"])
def test_a_host_that_checks_groups_in_costs_one_check_for_each(record: Record, policy: str) -> None:
    recording = record(policy, layers=6, attn_io=0.01, ffn_io=0.01, check_seconds=0.004)
    launches = [piece for gap in find_gaps(recording.spans) for piece in gap.pieces if piece.cause == "launch"]
    assert len(launches) == 2 * 2 * 6
    assert [piece.ended - piece.started for piece in launches] == pytest.approx([0.004] * 24)


@pytest.mark.parametrize("policy", POLICIES)
def test_slow_kv_blocks_are_the_cause_of_every_gap_but_the_first_reads(record: Record, policy: str) -> None:
    causes = seconds_by_cause(record(policy, attn_io=1e-4, ffn_io=1e-4, kv_seconds=0.5))
    assert causes["KV"] > 0.99 * sum(causes.values()) > 1


def test_a_line_with_room_to_spare_waits_only_for_its_first_group(record: Record) -> None:
    recording = record("backpressure", attn_io=0.05, ffn_io=0.05)
    (gap,) = find_gaps(recording.spans)
    assert (gap.started, gap.ended) == (0, pytest.approx(0.05))
    assert [piece.cause for piece in gap.pieces] == ["disk"]


def test_gaps_and_computing_make_up_the_run(record: Record) -> None:
    recording = record("history", kv_seconds=0.03, attn_disk=0.07, ffn_disk=0.09)
    computing = union((s.started, s.ended) for s in recording.spans if s.actor == COMPUTE and s.what == "work")
    whole = within(computing, 0, computing[-1][1])
    assert sum(seconds_by_cause(recording).values()) + total_seconds(whole) == pytest.approx(computing[-1][1])
