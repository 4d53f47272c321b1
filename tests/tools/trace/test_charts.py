"""The two charts over time, down to their points."""

import re
from collections.abc import Callable
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core.trace import Count, Span
from pipeline.tools.trace.charts import (
    groups_on_device,
    overview_chart,
    readable_window,
    shares_of_columns,
    timeline_chart,
)
from pipeline.tools.trace.intervals import union
from pipeline.tools.trace.lane_rows import one_after_the_other, thinned
from pipeline.tools.trace.recording import Recording
from pipeline.tools.trace.report import report_html
from pipeline.tools.trace.summary import summarize
from pipeline.tools.trace.svg import LEFT, RIGHT, WIDTH, Scale, axis, steps, tick_seconds

Record = Callable[..., Recording]
Points = list[tuple[float, float]]


def areas(chart: str) -> list[tuple[str, Points]]:
    """Style and corners of every area of a chart, in the order in which they are drawn."""
    paths = [one for one in ElementTree.fromstring(chart).iter("path") if one.attrib["d"].endswith("Z")]
    return [
        (one.attrib["class"], [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", one.attrib["d"])])
        for one in paths
    ]


def test_a_staircase_keeps_its_height_until_the_next_step() -> None:
    path = steps([(0, 5), (4, 2)], 10, 8, "style")
    assert 'd="M0.0 10.0L0.0 5.0L4.0 5.0L4.0 2.0L8.0 2.0L8.0 10.0Z"' in path
    assert steps([], 10, 8, "style") == ""


def test_counters_show_every_peak_and_begin_with_what_was_there() -> None:
    spans = tuple(Span("compute_scheduler", "work", 0, "attn", seq, 10.0 * seq, 10.0 * seq + 10) for seq in range(2))
    counts = [Count("queue a", at, value) for at, value in ((1, 3), (2, 2), (15, 1), (15, 4), (15, 0), (30, 4))]
    recording = Recording(spans, tuple(counts))
    ((style, points),) = [
        one for one in areas(timeline_chart(recording, summarize(recording), (10, 20))) if "queue" in one[0]
    ]
    left, middle, right, base = LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT, points[0][1]
    heights = [(x, round((base - y) / (22 / 4), 3)) for x, y in points]
    assert style == "counter queue"
    assert list(dict.fromkeys(heights)) == [(left, 0), (left, 2), (middle, 2), (middle, 4), (middle, 0), (right, 0)]


def test_queues_stand_in_the_order_of_the_line_whichever_changed_first() -> None:
    spans = (Span("compute_scheduler", "work", 0, "attn", 0, 0.0, 1.0),)
    changes = ("slots host", "queue b", "queue stranger", "queue a")
    recording = Recording(spans, tuple(Count(name, 0.5, 1) for name in changes), {"actors": ["first", "a", "b"]})
    chart = timeline_chart(recording, summarize(recording), (0, 1))
    names = ["queue a", "queue b", "queue stranger", "slots host", "groups on device"]
    assert re.findall(r">((?:queue|slots|groups) [a-z ]+)</text>", chart) == names


def test_the_overview_puts_what_the_device_waited_for_above_its_computing() -> None:
    spans = []
    for seq in range(400):
        spans += [Span("disk_reader", "work", seq, "attn", seq, 4.0 * seq, 4.0 * seq + 1)]
        spans += [Span("compute_scheduler", "work", seq, "attn", seq, 4.0 * seq + 1, 4.0 * seq + 4)]
    recording = Recording(tuple(spans), ())
    disk, waits, computing = areas(overview_chart(recording, summarize(recording), (0, 1600)))
    # What is drawn last lies on top.
    assert [style for style, _ in (disk, waits, computing)] == ["busy", "solid cause-disk", "busy"]
    for (_, points), share in zip((disk, waits, computing), (0.25, 1.0, 0.75), strict=True):
        base = points[0][1]
        assert [(base - y) / 25 for _, y in points[1:-1]] == pytest.approx([share] * (len(points) - 2), abs=0.01)


def test_many_slices_that_are_too_narrow_to_see_become_one() -> None:
    work = [Span("disk_reader", "work", 0, "attn", seq, seq / 10_000, (seq + 1) / 10_000) for seq in range(5_000)]
    work += [Span("disk_reader", "work", 0, "attn", 5_000, 0.5, 1.0)]
    slices = thinned(one_after_the_other(work), 0.001)
    assert [(one.started, one.ended, one.span is None) for one in slices] == [(0, 0.5, True), (0.5, 1.0, False)]
    assert thinned(one_after_the_other(work), 0.00001) == one_after_the_other(work)


def test_of_operations_that_overlap_the_one_that_ends_first_is_drawn() -> None:
    times = [(0, 1), (0, 2), (0, 3), (5, 6), (4, 6), (7, 12), (8, 9)]
    work = [Span("disk_reader", "work", 0, "attn", seq, *map(float, pair)) for seq, pair in enumerate(times)]
    drawn = [(one.span.seq, one.started, one.ended) for one in one_after_the_other(work) if one.span]
    assert drawn == [(0, 0, 1), (1, 1, 2), (2, 2, 3), (4, 4, 6), (5, 7, 8), (6, 8, 9), (5, 9, 12)]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=20))
def test_a_row_is_busy_when_any_of_its_operations_runs(times: list[tuple[int, int]]) -> None:
    work = [Span("disk_reader", "work", 0, "attn", 0, float(at), float(at + length)) for at, length in times]
    slices = [(one.started, one.ended) for one in one_after_the_other(work)]
    assert all(before[1] <= after[0] for before, after in pairwise(slices))
    assert union(slices) == union((span.started, span.ended) for span in work)


def test_the_window_is_the_last_two_passes_or_as_many_groups_as_can_be_told_apart(record: Record) -> None:
    def window(**run: int) -> tuple[float, float, list[Span]]:
        recording = record("history", attn_io=0.1, **run)
        started, ended = readable_window(recording, summarize(recording))
        computed = [span for span in recording.spans if span.actor == "compute_scheduler" and span.what == "work"]
        return started, ended, [span for span in computed if span.started >= started]

    started, ended, shown = window(passes=4, layers=3)
    assert (len(shown), shown[0].layer, shown[0].group) == (12, 0, "attn")
    assert shown[0].started - started == pytest.approx(0.1), "with the wait before it"
    assert ended == shown[-1].ended
    assert len(window(passes=3, layers=60)[2]) == 24
    assert window(passes=1, layers=3)[0] == 0


@pytest.mark.parametrize("policy", ["history1", "current", "stage3", "backpressure"])
def test_every_slice_of_eighty_layers_has_a_name_that_fits_into_it(record: Record, policy: str) -> None:
    recording = record(policy, passes=1, layers=80)
    summary = summarize(recording)
    chart = ElementTree.fromstring(timeline_chart(recording, summary, readable_window(recording, summary)))
    shown: list[list[str]] = []
    for one in chart.iter():
        title = one.findtext("title") or ""
        if one.tag == "rect" and title.startswith("layer"):
            width, about = float(one.attrib["width"]), title
            shown.append([])
        elif one.tag == "text" and "on" in one.attrib["class"].split():
            shown[-1].append(one.text or "")
            assert len(shown[-1][-1]) * 6 <= width
            assert shown[-1][-1].lstrip("L").split()[0] in about
    assert len(shown) >= 40
    assert sum(lines == [] for lines in shown) <= 1, "only the first may be cut by the edge of the window"
    assert max(map(len, shown)) == 2
    assert [lines[0] for lines in shown if lines[1:] == ["ffn"]][-1] == "L79"


def test_a_slice_has_its_name_in_one_line_in_two_or_only_the_number_of_its_layer() -> None:
    starts = (0.0, 60.0, 96.0, 120.0, 138.0, 148.0, 934.0)
    work = [Span("disk_reader", "work", 10 + seq, "attn", seq, *pair) for seq, pair in enumerate(pairwise(starts))]
    chart = timeline_chart(Recording(tuple(work), ()), summarize(Recording(tuple(work), ())), (0.0, 934.0))
    labels = [one for one in ElementTree.fromstring(chart).iter("text") if "on" in one.attrib["class"].split()]
    assert [one.text for one in labels] == ["L10 attn", "L11", "attn", "L12", "13", "L15 attn"]
    line, upper, lower, *_ = (float(one.attrib["y"]) for one in labels)
    assert (upper, lower) == (line - 6, line + 6)


@pytest.mark.parametrize(
    ("name", "shown", "queue"),
    [
        ("a_stage_of_22_character", "a_stage_of_…_character", "queue a_stag…22_character"),
        ("a_stage_of_19_chars", "a_stage_of_19_chars", "queue a_stage_of_19_chars"),
        ("x" * 100 + "y" * 100, "x" * 11 + "…" + "y" * 10, "queue xxxxxx…" + "y" * 12),
    ],
)
def test_a_long_name_is_shortened_in_its_middle_and_shows_whole_under_the_pointer(
    name: str, shown: str, queue: str
) -> None:
    spans = (Span(name, "work", 0, "attn", 0, 0.0, 1.0), Span("compute_scheduler", "work", 0, "attn", 0, 1.0, 2.0))
    recording = Recording(spans, (Count(f"queue {name}", 0.5, 1),))
    summary = summarize(recording)
    for chart in (timeline_chart(recording, summary, (0, 2)), overview_chart(recording, summary, (0, 2))):
        rows = {one.text: one.findtext("title") for one in ElementTree.fromstring(chart).iter("text")}
        assert rows[shown] == (name if shown != name else None)
        assert rows.get(queue) in (f"queue {name}", None)
        assert (queue in rows) == ("groups on device" in rows)


def test_a_pause_between_requests_does_not_fill_the_window() -> None:
    spans = []
    for seq, at in enumerate((0.0, 1.0, 100.0)):
        spans += [Span("compute_scheduler", "request", 0, "attn", seq, max(at - 99, 0.0), at)] if at > 1 else []
        spans += [Span("compute_scheduler", "work", 0, "attn", seq, at, at + 1)]
    recording = Recording(tuple(spans), ())
    assert readable_window(recording, summarize(recording)) == (99.75, 101)
    page = report_html(recording)
    assert "<b>98.0 s</b>no request, left out" in page
    assert "waiting: start</li>" in page


def test_groups_are_on_the_device_from_their_upload_to_the_end_of_their_last_computation() -> None:
    spans = [
        Span("disk_reader", "work", 0, "attn", 0, 0, 1),
        Span("gpu_uploader", "work", 0, "attn", 0, 2, 3),
        Span("gpu_uploader", "work", 0, "ffn", 1, 3, 4),
        Span("compute_scheduler", "work", 0, "attn", 0, 3, 5),
        Span("compute_scheduler", "work", 0, "attn", 0, 5, 7, part=1),
        Span("compute_scheduler", "work", 0, "ffn", 1, 7, 9),
    ]
    assert [(count.at, count.value) for count in groups_on_device(spans)] == [(2, 1), (3, 2), (7, 1), (9, 0)]


def test_columns_tell_which_share_of_them_is_covered() -> None:
    scale = Scale(0.0, 10.0, 20.0)
    assert shares_of_columns([(0, 11), (12.5, 15.5), (19, 40)], scale, 5) == pytest.approx([0.5, 0.75, 0.75, 0, 0.5])


@pytest.mark.parametrize("seconds", [1e-6, 0.0123, 1.0, 7.5, 86_400.0])
def test_ticks_are_round_and_few(seconds: float) -> None:
    step = tick_seconds(seconds)
    assert 4 <= seconds / step <= 10.01
    assert float(f"{step:.0e}") == pytest.approx(step)
    assert f"{step:.0e}"[0] in "125"


def test_the_axis_counts_milliseconds_from_zero_on() -> None:
    labels = re.findall(r">([\d.,]+|ms|s)</text>", "".join(axis(Scale(100.0, 100.95, 101.25), 0, 10)))
    assert labels == ["950", "1,000", "1,050", "1,100", "1,150", "1,200", "1,250", "ms"]
    labels = re.findall(r">([\d.,]+|ms|s)</text>", "".join(axis(Scale(0.0, 0.0, 0.000_005), 0, 10)))
    assert labels == [*(f"{tick * 0.0005:.4f}" for tick in range(11)), "ms"]
    labels = re.findall(r">([\d.,]+|ms|s)</text>", "".join(axis(Scale(0.0, 60.0, 75.0), 0, 10)))
    assert labels == ["60", "62", "64", "66", "68", "70", "72", "74", "s"]
