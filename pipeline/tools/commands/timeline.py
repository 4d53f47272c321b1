"""A trace as a picture in text: one row per actor, time from left to right."""

from collections.abc import Mapping, Sequence

from actors.core.trace import Span
from pipeline.tools.trace.charts import shares_of_columns
from pipeline.tools.trace.journeys import times_of
from pipeline.tools.trace.svg import Scale

WORK, HELD_BACK, WAITING, NOTHING = "█", "░", "·", " "
LEGEND = (
    f"{WORK} working   {HELD_BACK} held back by those behind (no slot, no room)   {WAITING} waiting for those before"
)
SHOWN = {
    NOTHING: ("request",),
    WORK: ("work",),
    HELD_BACK: ("room", "slot"),
    WAITING: ("message", "event", "check", "companion", "hop", "lane", "result"),
}
"""The spans that each character stands for, by what they say."""
NAME_WIDTH = 18


def timeline(spans: Sequence[Span], actors: Sequence[str], started: float, ended: float, width: int = 72) -> str:
    """Draw what each actor did between two moments, one character for each `1 / width` of the time.

    A character shows work if work fills a third of its time or more, since reads and copies run beside the waits of
    the actor that started them; otherwise whatever fills most of it.
    """
    scale, lines = Scale(started, started, ended), []
    for actor in actors:
        times = [times_of(spans, actor, *whats) for whats in SHOWN.values()]
        shares = zip(*(shares_of_columns(each, scale, width) for each in times), strict=True)
        glyphs = (_glyph(dict(zip(SHOWN, column, strict=True))) for column in shares)
        lines.append(f"{actor:{NAME_WIDTH}}▕{''.join(glyphs)}▏")
    return "\n".join(lines)


def _glyph(shares: Mapping[str, float]) -> str:
    return WORK if shares[WORK] >= 1 / 3 else max(shares, key=shares.__getitem__)
