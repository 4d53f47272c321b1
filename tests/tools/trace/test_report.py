"""The page: complete in itself, well formed, readable for long traces and for empty ones."""

import argparse
import math
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from actors.core.trace import Count, Span
from pipeline.errors import ConfigError
from pipeline.tools.commands.report import report
from pipeline.tools.trace.perfetto import read_trace, write_trace
from pipeline.tools.trace.recording import Recording
from pipeline.tools.trace.report import report_html
from pipeline.tools.trace.summary import summarize
from pipeline.tools.trace.svg import LEFT, RIGHT, WIDTH

Record = Callable[..., Recording]
VOID = {"meta", "br"}


class Balance(HTMLParser):
    """Fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def pictures(page: str) -> list[ElementTree.Element]:
    """The page's drawings, after checks that hold for every page."""
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert "script" not in balance.seen
    assert "link" not in balance.seen
    assert not re.search(r"https?:|src=|@import|url\((?!#)", page)
    assert not re.search(r'="(nan|-?inf)"', page)
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def rects(picture: ElementTree.Element, style: str) -> list[tuple[float, float, float]]:
    """Left and right edge and top of every rectangle that is drawn in a style."""
    found = [one for one in picture.iter("rect") if style in one.attrib["class"].split() and "x" in one.attrib]
    return [
        (float(o.attrib["x"]), float(o.attrib["x"]) + float(o.attrib["width"]), float(o.attrib["y"])) for o in found
    ]


def texts(picture: ElementTree.Element, style: str) -> list[str]:
    return [one.text or "" for one in picture.iter("text") if style in one.attrib["class"].split()]


@pytest.mark.parametrize("policy", ["history1", "history", "stage1", "stage2", "stage3", "backpressure"])
def test_every_policy_gives_a_page_with_its_lanes_gaps_and_counters(record: Record, policy: str) -> None:
    recording = record(policy, passes=3, attn_disk=0.1, ffn_disk=0.11, kv_seconds=0.02, check_seconds=0.005)
    page = report_html(recording)
    timeline, overview = pictures(page)
    computing = ["compute micro-batch 0", "compute micro-batch 1"] if policy == "stage3" else ["compute"]
    counters = [f"queue {actor}" for actor in recording.configuration["actors"] if "planner" not in actor]
    slots = [f"slots {place}" for place in ("host", "device", "kv host", "kv device")]
    assert sorted(texts(timeline, "name")) == sorted(
        ["disk", "H2D", *computing, "KV in", "KV out", *counters, *slots, "groups on device"]
    )
    assert texts(overview, "name") == ["disk", "H2D", "compute", "KV in", "KV out"]
    assert texts(timeline, "begin") == ["pass 2", "pass 3"]
    for cause, seconds in summarize(recording).waited.items():
        assert (f"waiting: {cause}</li>" in page) == (seconds > 0)
    assert page.index("Configuration") < page.index("settings.passes")


def test_slices_and_gaps_of_the_computing_fill_its_row_without_overlaps(record: Record) -> None:
    (timeline,) = pictures(report_html(record("history", layers=3, kv_seconds=0.02)))
    row = sorted(rects(timeline, "attn") + rects(timeline, "ffn") + rects(timeline, "hatch") + rects(timeline, "solid"))
    tops = sorted({top for _, _, top in row})
    compute = [(left, right) for left, right, top in row if top == tops[1]]
    assert compute[0][0] == pytest.approx(LEFT, abs=0.1)
    assert compute[-1][1] == pytest.approx(WIDTH - RIGHT, abs=0.15)
    for (_, right), (left, _) in pairwise(compute):
        assert left == pytest.approx(right, abs=0.15)


def test_slices_tell_layer_group_seq_and_milliseconds(record: Record) -> None:
    page = report_html(record("backpressure", layers=2, passes=1))
    assert "<title>layer 1 ffn, seq 3: 120 ms</title>" in page
    assert "<title>layer 0 ffn, seq 1: 100 ms, after 100 ms behind others</title>" in page
    assert ">L1 ffn</text>" in page
    assert "waiting: disk (before L0 attn)</title>" in page


def test_a_stage_of_the_users_has_a_lane_and_its_own_cause() -> None:
    spans = [Span("disk_reader", "work", 0, "attn", 0, 0, 1), Span("check<sum>", "work", 0, "attn", 0, 1, 3)]
    spans += [Span("compute_scheduler", "work", 0, "attn", 0, 3, 4)]
    page = report_html(Recording(tuple(spans), (), {"actors": ["disk_reader", "check<sum>", "compute_scheduler"]}))
    (timeline,) = pictures(page)
    assert texts(timeline, "name") == ["disk", "check<sum>", "compute", "groups on device"]
    assert "waiting: stage</li>" in page


def test_everything_that_people_chose_is_escaped() -> None:
    evil = '<b onload="x">&\'</b>'
    spans = [Span(evil, "work", 0, evil, 0, 0, 1), Span("compute_scheduler", "work", 0, evil, 0, 1, 2)]
    spans += [Span(evil, evil, 0, evil, 1, 2, 3)]
    counts = (Count(f"queue {evil}", 0.5, 1),)
    configuration = {"command": evil, "model": evil, evil: {evil: [evil, evil]}, "actors": [evil]}
    page = report_html(Recording(tuple(spans), counts, configuration))
    assert "<b " not in page
    assert page.count("&lt;b onload=") >= 8
    pictures(page)


EMPTY = [
    Recording((), ()),
    Recording((), (Count("queue disk_reader", 5.0, 1),), {"model": "m"}),
    Recording((Span("disk_reader", "message", 0, "attn", 0, 1.0, 2.0),), ()),
    Recording((Span("disk_reader", "work", 0, "attn", 0, 1.0, 2.0),), ()),
    Recording((Span("compute_scheduler", "work", 0, "attn", 0, 1.0, 1.0 + 1e-9),), ()),
    Recording(
        (Span("compute_scheduler", "work", 7, "head.0", 3, 1.0, 2.0),), (Count("slots host", 1.5, 0),), {"actors": []}
    ),
]


@pytest.mark.parametrize("recording", EMPTY)
def test_empty_and_tiny_traces_give_a_page(recording: Recording) -> None:
    page = report_html(recording)
    pictures(page)
    computed = any(span.actor == "compute_scheduler" for span in recording.spans)
    assert ("Nothing was computed in this trace." in page) == (not computed)


@pytest.mark.parametrize("recording", EMPTY)
def test_a_page_without_computations_says_nothing_about_the_device(recording: Recording) -> None:
    page = report_html(recording)
    computed = any(span.actor == "compute_scheduler" for span in recording.spans)
    for said in ("device computing", "device waiting", "It never waited", "What the device waited for"):
        assert (said in page) == computed
    worked = any(span.what == "work" for span in recording.spans)
    for heading in ("Overlap", "Time per resource"):
        assert (f"<h2>{heading}</h2>" in page) == worked


def test_a_long_name_is_shortened_in_the_table_and_wraps_elsewhere() -> None:
    name = "x" * 100 + "y" * 100
    spans = (Span(name, "work", 0, "attn", 0, 0.0, 1.0), Span("compute_scheduler", "work", 0, "attn", 0, 1.0, 1.1))
    page = report_html(Recording(spans, (), {"actors": [name], "model": name, "queues": {name: 2}}))
    assert f'<td title="{name}">{"x" * 11}…{"y" * 10}</td>' in page
    assert f"Bound by {name}: busy" in page
    assert re.search(r"header \{[^}]*overflow-wrap: break-word", page)
    for cell in ("key", "value"):
        assert re.search(rf"td\.{cell} \{{[^}}]*overflow-wrap: anywhere", page)
    pictures(page)


def test_launch_is_not_explained_as_if_all_had_been_there() -> None:
    # Nobody asked for the second group until its turn had come, and nothing tells what the host did before it launched.
    spans = [
        Span("disk_reader", "work", 0, "attn", 0, 0.0, 1.0),
        Span("compute_scheduler", "work", 0, "attn", 0, 1.0, 2.0),
        Span("disk_reader", "work", 0, "ffn", 1, 5.0, 6.0),
        Span("compute_scheduler", "work", 0, "ffn", 1, 7.0, 8.0),
    ]
    page = report_html(Recording(tuple(spans), ()))
    meaning = "the host had not launched it, had not asked for it, or was loading it again"
    assert f'<td title="{meaning}">launch</td>' in page
    assert "The device waited 6,000 ms (75.0%), 67% of that for the host.</h1>" in page


def test_the_page_of_a_long_trace_is_small_and_quick(record: Record) -> None:
    recording = record("stage3", passes=1, layers=40, attn_disk=0.1, ffn_disk=0.1, kv_seconds=0.01, gpu_groups=4)
    seconds = max(span.ended for span in recording.spans)
    times = math.ceil(100_000 / len(recording.spans))
    spans = tuple(
        Span(
            s.actor,
            s.what,
            s.layer,
            s.group,
            s.seq + at * 80,
            s.started + at * seconds,
            s.ended + at * seconds,
            s.slot,
            s.part,
        )
        for at in range(times)
        for s in recording.spans
    )
    counts = tuple(Count(c.counter, c.at + at * seconds, c.value) for at in range(times) for c in recording.counts)
    started = time.process_time()
    page = report_html(Recording(spans, counts, recording.configuration))
    assert time.process_time() - started < 10
    assert len(page) < 500_000
    pictures(page)


def test_the_command_writes_the_page_and_says_what_it_shows(
    tmp_path: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, out = tmp_path / "trace.json.gz", tmp_path / "out.html"
    write_trace(trace, record("stage2"))
    report(argparse.Namespace(trace=trace, out=out))
    headline = summarize(read_trace(trace)).headline
    assert capsys.readouterr().out == f"{out}: {headline}\n"
    assert f"<h1>{headline}</h1>" in out.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="nowhere"):
        report(argparse.Namespace(trace=trace, out=tmp_path / "nowhere" / "out.html"))
    with pytest.raises(ConfigError, match="not a trace"):
        report(argparse.Namespace(trace=out, out=tmp_path / "other.html"))
