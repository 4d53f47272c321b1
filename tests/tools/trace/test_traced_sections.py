"""Recordings of several sections: lanes side by side, and which section and which of its links a pass waited for."""

import argparse
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from actors.core.trace import Count, Span
from pipeline.tools.commands.report import report
from pipeline.tools.simulation.sim_passes import SectionRates
from pipeline.tools.simulation.sim_sections import simulate_sections
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.trace.charts import timeline_chart
from pipeline.tools.trace.gaps import find_gaps
from pipeline.tools.trace.perfetto import _events, read_trace, write_trace
from pipeline.tools.trace.recording import Recording
from pipeline.tools.trace.report import report_html
from pipeline.tools.trace.sections import by_section, plain_names
from pipeline.tools.trace.summary import Summary, bound_sentence, held_back_times, summarize

ACTORS = ("prefetch_planner", "disk_reader", "pinned_stager", "gpu_uploader", "compute_scheduler")
TIMINGS = LayerTimings(layers=8, attn=0.002, ffn=0.004, attn_io=0.004, ffn_io=0.008, attn_disk=0.01, ffn_disk=0.02)


def recorded(rates: Sequence[SectionRates], owners: Sequence[int] = (0, 1) * 4, hop_seconds: float = 0.0) -> Recording:
    """Three passes over sections; the names bear their numbers, as where several devices compute."""
    run = simulate_sections(TIMINGS, owners, rates=rates, hop_seconds=hop_seconds, passes=3)
    spans = [
        span._replace(actor=f"{span.actor} {section}")
        for section, trace in enumerate(run.traces)
        for span in trace.spans
    ]
    counts = [
        count._replace(counter=f"{count.counter} {section}")
        for section, trace in enumerate(run.traces)
        for count in trace.counts
    ]
    actors = [f"{actor} {section}" for section in range(len(rates)) for actor in ACTORS]
    return Recording(tuple(spans), tuple(counts), {"command": "simulate", "actors": actors})


def waits(summary: Summary) -> dict[tuple[int | None, str], float]:
    return {key: seconds for key, seconds in summary.waited_in.items() if seconds}


def work(actor: str, layer: int, started: float, ended: float) -> Span:
    return Span(actor, "work", layer, "attn", layer // 2, started, ended)


def test_only_actors_of_the_runtime_with_numbers_make_sections() -> None:
    assert plain_names(["disk_reader", "stage 2"]) == {
        "disk_reader": ("disk_reader", None),
        "stage 2": ("stage 2", None),
    }
    assert plain_names(["stage 2 1", "disk_reader 1"]) == {
        "stage 2 1": ("stage 2", 1),
        "disk_reader 1": ("disk_reader", 1),
    }


def test_a_slow_disk_is_named_with_its_section() -> None:
    summary = summarize(recorded([SectionRates(), SectionRates(disk=0.5)]))
    assert summary.headline.startswith("Bound by the disk in section 1: busy ")
    assert "All devices waited " in summary.headline
    assert summary.headline.endswith("of that for the disk in section 1.")
    assert max(waits(summary), key=waits(summary).__getitem__) == (1, "disk")
    assert (summary.passes, summary.groups) == (3, 48)


def test_sections_that_bind_alike_are_named_together() -> None:
    assert bound_sentence({"disk_reader 0": 0.97, "disk_reader 1": 0.96, "compute_scheduler 1": 0.2}) == (
        "Bound by the disk in sections 0 and 1: busy 97% of the time."
    )
    shares = {"disk_reader 0": 0.2, "compute_scheduler 0": 0.5, "compute_scheduler 1": 0.45}
    assert bound_sentence(shares) == "Bound by computing: busy 95% of the time.", "the sections compute in turn"
    assert bound_sentence(shares | {"compute_scheduler 1": 0.1}) == (
        "Bound by no single resource: compute busy 60%, disk in section 0 busy 20% of the time."
    )


def test_what_computes_in_one_section_is_no_gap_in_another() -> None:
    spans = [work(f"compute_scheduler {layer % 2}", layer, 10.0 * layer, 10.0 * layer + 10) for layer in range(4)]
    assert find_gaps(spans) == []


def test_a_gap_has_the_causes_of_the_section_that_ended_it() -> None:
    spans = [
        work("compute_scheduler 0", 0, 0, 10),
        work("disk_reader 0", 2, 0, 50),
        work("disk_reader 1", 1, 3, 14),
        work("compute_scheduler 1", 1, 20, 30),
        work("compute_scheduler 0", 0, 34, 40),
    ]
    handed, begun = find_gaps(spans)
    assert handed.section == 1
    assert [(one.cause, one.started, one.ended) for one in handed.pieces] == [("disk", 10, 14), ("hop", 14, 20)]
    assert [one.cause for one in begun.pieces] == ["launch"], "a pass that begins was handed on by no section"


def test_hops_are_waited_for_where_weights_stay() -> None:
    summary = summarize(recorded([SectionRates(disk=9e9, link=9e9)] * 2, hop_seconds=0.003))
    seconds = {cause: summary.waited_in[1, cause] for cause in ("hop", "disk", "H2D")}
    assert seconds["hop"] == pytest.approx(3 * 4 * 0.003, rel=0.01)
    assert seconds["disk"] + seconds["H2D"] < 1e-4


def test_a_recording_is_cut_into_one_for_each_section() -> None:
    recording = recorded([SectionRates()] * 2)
    first, second = by_section(recording).values()
    assert {span.actor for span in second.spans} <= set(ACTORS)
    assert {span.layer % 2 for span in second.spans} == {1}
    assert "slots host" in {count.counter for count in second.counts}
    assert len(first.spans) + len(second.spans) == len(recording.spans)
    assert by_section(first) == {None: first}


def test_resources_come_section_by_section_and_are_held_back_each_in_its_own() -> None:
    spans = [
        work("disk_reader 1", 1, 0, 2),
        work("disk_reader 0", 0, 0, 1),
        work("gpu_uploader 1", 1, 5, 6),
        work("gpu_uploader 0", 0, 1, 2),
        work("compute_scheduler 0", 0, 2, 6),
        work("compute_scheduler 1", 1, 6, 8),
    ]
    summary = summarize(Recording(tuple(spans), (Count("experts L1 wanted", 7, 3), Count("slots host 1", 7, 1))))
    named = [f"section {section} {name}" for section in (0, 1) for name in ("disk", "H2D", "compute")]
    assert [*summary.names.values()] == named
    assert held_back_times(spans, "gpu_uploader 1") == [(2, 5)], "a group that was read stood before it"
    assert held_back_times(spans, "gpu_uploader 0") == []


def test_the_report_shows_the_lanes_of_each_section_side_by_side() -> None:
    recording = recorded([SectionRates(), SectionRates(disk=0.5)])
    summary = summarize(recording)
    chart = timeline_chart(recording, summary, (summary.started, summary.ended))
    names = [
        "section 0 disk",
        "section 0 H2D",
        "section 0 compute",
        "section 1 disk",
        "section 1 H2D",
        "section 1 compute",
    ]
    assert [chart.index(f">{name}<") for name in names] == sorted(chart.index(f">{name}<") for name in names)
    assert chart.index(">queue disk_reader 0<") < chart.index(">groups on device 0<") < chart.index(">slots host 1<")
    tops = [float(re.findall(rf'y="([\d.]+)">{name}<', chart)[0]) for name in names]
    assert [later - top for top, later in pairwise(tops)] == [32, 32, 42, 32, 32], "the sections stand apart"
    page = report_html(recording)
    assert '<td title="its weights were read, or stood behind other reads">section 1 disk</td>' in page


def test_a_trace_of_sections_comes_back_and_has_a_process_for_each(tmp_path: Path) -> None:
    recording = recorded([SectionRates()] * 2)
    path = tmp_path / "trace.json"
    write_trace(path, recording)
    again = read_trace(path)
    assert [span[:5] for span in again.spans] == [span[:5] for span in recording.spans]
    assert [count.counter for count in again.counts] == [count.counter for count in recording.counts]
    events = list(_events(recording))
    processes = {one["pid"]: one["args"]["name"] for one in events if one["name"] == "process_name"}
    assert processes == {1: "section 0 penstock", 2: "section 1 penstock"}
    assert all(one["pid"] == 1 + int(one["cat"][-1]) for one in events if one["ph"] == "X")
    assert all(one["pid"] == 1 + int(next(iter(one["args"]))[-1]) for one in events if one["ph"] == "C")
    arrows = [one for one in events if one["ph"] == "X" and "bind_id" in one and one["cat"] == "compute_scheduler 1"]
    assert len(arrows) == 3 * 8
    report(argparse.Namespace(trace=path, out=tmp_path / "report.html"))


def test_counters_of_one_line_that_end_in_a_number_stay_in_its_process() -> None:
    recording = Recording((Span("compute_scheduler", "work", 0, "attn", 0, 0, 1),), (Count("slots stage 1", 0.5, 2),))
    assert {one["pid"] for one in _events(recording)} == {1}
