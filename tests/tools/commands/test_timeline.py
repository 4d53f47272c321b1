"""The picture of a trace: one glyph per column, clipped at both ends."""

import pytest

from actors.core.trace import Span
from pipeline.tools.commands.timeline import HELD_BACK, LEGEND, NAME_WIDTH, NOTHING, WAITING, WORK, timeline


def span(started: float, ended: float, what: str = "work", actor: str = "reader") -> Span:
    return Span(actor, what, 0, "attn", 0, started, ended)


def row(*spans: Span, started: float = 0.0, ended: float = 10.0, width: int = 10) -> str:
    """What stands between the bars of the only row."""
    (line,) = timeline(spans, ["reader"], started, ended, width).splitlines()
    assert line.startswith(f"{'reader':{NAME_WIDTH}}▕")
    assert line.endswith("▏")
    return line[NAME_WIDTH + 1 : -1]


def picture(text: str) -> str:
    """Readable stand-ins: # work, - held back, . waiting."""
    return text.replace("#", WORK).replace("-", HELD_BACK).replace(".", WAITING)


def test_each_column_shows_what_fills_it() -> None:
    spans = [span(0, 3), span(3, 5, "message"), span(5, 6, "slot"), span(6, 8, "room"), span(9, 10, "event")]
    assert row(*spans) == picture("###..--- .")


@pytest.mark.parametrize(
    ("what", "glyph"), [("work", "#"), ("room", "-"), ("slot", "-"), ("message", "."), ("event", ".")]
)
def test_every_kind_of_span_has_its_glyph(what: str, glyph: str) -> None:
    assert row(span(2, 4, what)) == picture(f"  {glyph * 2}      ")
    assert picture(glyph) in LEGEND


@pytest.mark.parametrize(("work_seconds", "glyph"), [(0.3, "-"), (0.34, "#"), (0.9, "#")])
def test_work_shows_from_a_third_of_a_column_on(work_seconds: float, glyph: str) -> None:
    assert row(span(4, 5, "slot"), span(4, 4 + work_seconds)) == picture(f"    {glyph}     ")


def test_only_what_lies_in_a_column_counts_for_it() -> None:
    assert row(span(4, 4.9, "slot"), span(4.9, 6.1), span(6.1, 7, "room")) == picture("    -#-   ")


def test_work_adds_up_inside_a_column() -> None:
    assert row(span(4.0, 4.2), span(4.5, 4.7), span(4, 5, "message")) == picture("    #     ")


def test_otherwise_whatever_fills_most_of_a_column_shows() -> None:
    assert row(span(4.0, 4.3), span(4.3, 4.6, "slot"), span(4.6, 5.0, "message")) == picture("    .     ")
    assert row(span(4.0, 4.3), span(4.3, 4.7, "slot"), span(4.7, 5.0, "message")) == picture("    -     ")
    assert row(span(4.0, 4.3), span(4.3, 4.5, "slot"), span(4.5, 4.7, "event")) == picture("    #     ")
    assert row(span(4.0, 4.3, "slot"), span(4.3, 4.5, "message"), span(4.5, 4.8, "event")) == picture("    .     ")


def test_spans_are_clipped_at_both_ends() -> None:
    assert row(span(-50, 2)) == picture("##        ")
    assert row(span(8, 1000)) == picture("        ##")
    assert row(span(-5, 55)) == picture("##########")
    assert row(span(-5, 0), span(10, 15), span(-0.5, -0.2), span(10.2, 10.4)) == NOTHING * 10


def test_the_picture_begins_where_it_is_told_to() -> None:
    assert row(span(104, 106), started=100, ended=108, width=4) == picture("  # ")
    assert row(span(100, 104), started=100, ended=108, width=16) == picture("########        ")


def test_the_rows_are_the_actors_asked_for_in_their_order() -> None:
    spans = [span(0, 10, actor="uploader"), span(0, 10, actor="unknown"), span(0, 5, "room", actor="reader")]
    lines = timeline(spans, ["reader", "uploader", "idle"], 0, 10, 2).splitlines()
    assert lines == [
        f"{'reader':{NAME_WIDTH}}▕{picture('- ')}▏",
        f"{'uploader':{NAME_WIDTH}}▕{picture('##')}▏",
        f"{'idle':{NAME_WIDTH}}▕  ▏",
    ]
