"""The meter: busy is the union of what ran, stalled the sum of what was waited for; the trace forgets the oldest."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.events import ForeignEvent

from actors.core.message import READY, Message
from actors.core.trace import ActorStatistics, Meter, Span, Trace


def message(seq: int = 0) -> Message[None]:
    return Message(seq // 2, ("attn", "ffn")[seq % 2], seq, None, READY)


def ran(started: float, ended: float) -> ForeignEvent:
    return ForeignEvent(span=(started, ended))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=25))
def test_busy_is_the_time_in_which_anything_ran(drawn: list[tuple[int, int]]) -> None:
    """Operations of one lane or one disk queue begin in the order in which they were launched."""
    meter = Meter("reader", Trace(recording=False))
    spans = [(started, started + length) for started, length in sorted(drawn)]
    for seq, (started, ended) in enumerate(spans):
        meter.launched(message(seq), (ran(started, ended),), slot=0)
    busy = {second for started, ended in spans for second in range(started, ended)}
    assert meter.statistics() == ActorStatistics(len(spans), pytest.approx(len(busy)), 0.0)


def test_an_operation_counts_as_a_message_at_once_and_as_time_when_it_has_ended() -> None:
    trace = Trace()
    meter = Meter("reader", trace)
    event = ForeignEvent(ended=False)
    meter.launched(message(), (event,), slot=3)
    assert meter.statistics() == ActorStatistics(1, 0.0, 0.0)
    assert not trace.spans
    event.ended, event.span = True, (2.0, 5.0)
    assert meter.statistics() == ActorStatistics(1, 3.0, 0.0)
    assert meter.statistics() == ActorStatistics(1, 3.0, 0.0), "counted once"
    assert list(trace.spans) == [Span("reader", "work", 0, "attn", 0, 2.0, 5.0, slot=3)]


def test_every_part_of_a_message_has_a_span_and_the_message_counts_once() -> None:
    trace = Trace()
    meter = Meter("compute_scheduler", trace)
    meter.launched(message(3), (ran(1.0, 2.0), ran(2.0, 4.0), ran(5.0, 6.0)), slot=7)
    assert meter.statistics() == ActorStatistics(1, 4.0, 0.0)
    assert list(trace.spans) == [
        Span("compute_scheduler", "work", 1, "ffn", 3, started, ended, slot=7, part=part)
        for part, (started, ended) in enumerate([(1.0, 2.0), (2.0, 4.0), (5.0, 6.0)])
    ]


def test_a_message_with_which_nothing_was_done_counts_all_the_same() -> None:
    trace = Trace()
    meter = Meter("compute_scheduler", trace)
    meter.launched(message(), (), slot=0)
    assert meter.statistics() == ActorStatistics(1, 0.0, 0.0)
    assert not trace.spans


def test_a_trace_that_does_not_record_keeps_nothing_but_the_sums_go_on() -> None:
    trace = Trace(recording=False)
    meter = Meter("reader", trace)
    late = ForeignEvent(ended=False)
    meter.launched(message(0), (ran(0.0, 1.0),), slot=0)
    meter.launched(message(1), (late,), slot=1)
    meter.stalled("room", message(1), 1.0, 3.0)
    assert not trace.spans
    trace.recording = True
    late.ended, late.span = True, (1.0, 5.0)
    assert meter.statistics() == ActorStatistics(2, 5.0, 2.0)
    assert [span.seq for span in trace.spans] == [1], "what ends from now on"


def test_operations_are_settled_in_the_order_in_which_they_were_launched() -> None:
    trace = Trace()
    meter = Meter("reader", trace)
    slow = ForeignEvent(ended=False)
    meter.launched(message(0), (slow,), slot=0)
    meter.launched(message(1), (ran(1.0, 2.0),), slot=0)
    assert meter.statistics().busy_seconds == 0.0
    slow.ended, slow.span = True, (0.0, 1.5)
    meter.launched(message(2), (ForeignEvent(ended=False),), slot=0)
    assert [span.seq for span in trace.spans] == [0, 1], "launching settles what has ended before"
    assert meter.statistics() == ActorStatistics(3, 2.0, 0.0)


def test_an_operation_without_a_span_holds_nobody_up() -> None:
    trace = Trace()
    meter = Meter("uploader", trace)
    for seq, event in enumerate([READY, ForeignEvent(error=OSError("disk")), ran(1.0, 2.0)]):
        meter.launched(message(seq), (event,), slot=0)
    assert meter.statistics() == ActorStatistics(3, 1.0, 0.0)
    assert [span.seq for span in trace.spans] == [2]


def test_work_counts_less_what_it_waited_for() -> None:
    trace = Trace()
    meter = Meter("stager", trace)
    meter.worked(message(1), 10.0, 14.0, 3.0)
    meter.worked(message(2), 20.0, 20.0, 0.0)
    assert meter.statistics() == ActorStatistics(2, 1.0, 0.0)
    assert list(trace.spans) == [Span("stager", "work", 0, "ffn", 1, 13.0, 14.0)], "no span of no length"


def test_stalls_add_up_and_say_what_for() -> None:
    trace = Trace()
    meter = Meter("reader", trace)
    waits = [("message", 0.0, 1.0), ("slot", 1.0, 4.0), ("room", 4.0, 4.0), ("event", 4.5, 5.0)]
    for seq, (what, started, ended) in enumerate(waits):
        meter.stalled(what, message(seq), started, ended)
    assert meter.stalled_seconds == pytest.approx(4.5)
    assert meter.statistics() == ActorStatistics(0, 0.0, 4.5)
    assert [(span.what, span.seq, span.started, span.ended) for span in trace.spans] == [
        ("message", 0, 0.0, 1.0),
        ("slot", 1, 1.0, 4.0),
        ("event", 3, 4.5, 5.0),
    ]


def test_a_trace_forgets_the_oldest_beyond_its_capacity() -> None:
    trace = Trace(capacity=3)
    meters = [Meter(name, trace) for name in ("one", "two")]
    for seq in range(5):
        meters[seq % 2].launched(message(seq), (ran(seq, seq + 1),), slot=0)
    assert [(span.actor, span.seq) for span in trace.spans] == [("one", 2), ("two", 3), ("one", 4)]
    assert meters[0].statistics() == ActorStatistics(3, 3.0, 0.0), "sums forget nothing"


def test_what_no_longer_fits_is_counted() -> None:
    trace, message = Trace(capacity=3), Message(0, "attn", 0, None, READY)
    for at in range(5):
        trace.span("reader", "work", message, at, at + 1)
        trace.count("queue reader", at, 1)
    assert (len(trace.spans), len(trace.counts), trace.dropped) == (3, 3, 4)
    trace.clear()
    assert (trace.spans, trace.counts, trace.dropped) == ((), (), 0)
