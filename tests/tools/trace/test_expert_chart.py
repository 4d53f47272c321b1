"""The picture of experts: a row for each layer, and what was read of what a layer wanted, as high as its share."""

import re

from actors.core.trace import Count, Span
from pipeline.tools.trace.charts import timeline_chart
from pipeline.tools.trace.expert_chart import expert_chart, expert_wants, found_sentence, span_of
from pipeline.tools.trace.gaps import find_gaps
from pipeline.tools.trace.recording import COMPUTE, EXPERT_COMPUTE, EXPERT_DISK, Recording
from pipeline.tools.trace.report import report_html
from pipeline.tools.trace.summary import summarize
from pipeline.tools.trace.svg import Scale

WANTS = {(0.0, 2): (8, 2, 3), (1.0, 7): (8, 8, 0), (2.0, 2): (4, 0, 4), (3.0, 7): (8, 4, 0)}
COUNTS = tuple(
    Count(f"experts L{layer} {what}", at, count)
    for (at, layer), counts in WANTS.items()
    for what, count in zip(("wanted", "found", "read"), counts, strict=True)
)
SPANS = (
    Span(COMPUTE, "work", 2, "attn", 0, 0.0, 1.0),
    Span(EXPERT_DISK, "work", 2, "expert.4", 0, 1.1, 2.0),
    Span(COMPUTE, "work", 2, "ffn", 1, 2.0, 2.1),
    Span(COMPUTE, "work", 3, "ffn", 2, 2.5, 3.1),
)


def test_cells_are_as_high_as_what_was_read_and_sent() -> None:
    wants = expert_wants(Recording((), (*COUNTS, Count("queue x", 4.0, 1))))
    assert [(one.at, one.layer, one.wanted, one.found, one.read) for one in wants] == [
        (at, layer, *counts) for (at, layer), counts in WANTS.items()
    ]
    chart = expert_chart(wants, Scale(0.0, *span_of(wants)))
    cells = re.findall(r'class="(read|sent)" x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', chart)
    assert [(style, float(height)) for style, _, _, height in cells] == [
        ("read", round(13 * 3 / 8, 1)),
        ("sent", round(13 * 3 / 8, 1)),
        ("read", 13.0),
        ("sent", 6.5),
    ]
    assert cells[0][1] == cells[1][1] < cells[2][1] == cells[3][1]
    assert found_sentence(wants) == (
        "Of all, 50.0% were found, 25.0% came from host memory, 25.0% were read; a layer wanted 7.0."
    )


def test_the_report_shows_experts_where_a_trace_has_some() -> None:
    recording = Recording(SPANS, COUNTS)
    assert "<h2>Experts</h2>" in report_html(recording)
    assert "experts L" not in timeline_chart(recording, summarize(recording), (0.0, 3.1))
    assert "<h2>Experts</h2>" not in report_html(Recording(SPANS, ()))


def test_a_layer_with_experts_waits_for_them() -> None:
    gaps = find_gaps(SPANS)
    assert [[piece.cause for piece in gap.pieces] for gap in gaps] == [["experts"], ["launch"]]


def test_while_experts_are_computed_there_is_no_gap() -> None:
    experts = [
        Span(EXPERT_COMPUTE, "work", 2, "expert.1", 0, 1.2, 1.5),
        Span(EXPERT_COMPUTE, "work", 2, "expert.4", 1, 1.9, 2.0),
        Span(EXPERT_COMPUTE, "work", 3, "expert.4", 2, 2.05, 2.3),
    ]
    recording = Recording((*SPANS, *experts), COUNTS)
    gaps = find_gaps(recording.spans)
    assert [(gap.started, gap.ended) for gap in gaps] == [(1.0, 1.2), (1.5, 1.9), (2.3, 2.5)]
    assert [piece.cause for gap in gaps for piece in gap.pieces] == ["experts", "experts", "launch"]
    assert "experts compute" in report_html(recording)
