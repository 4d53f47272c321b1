"""A trace as a picture in text: one row per actor, time from left to right."""

from collections.abc import Iterable, Sequence

from actors.core.trace import Span

WORK, HELD_BACK, WAITING, NOTHING = "█", "░", "·", " "
LEGEND = (
    f"{WORK} working   {HELD_BACK} held back by those behind (no slot, no room)   {WAITING} waiting for those before"
)
GLYPHS = {
    "work": WORK,
    "room": HELD_BACK,
    "slot": HELD_BACK,
    "request": NOTHING,
    **dict.fromkeys(("message", "event", "check", "companion", "lane", "result"), WAITING),
}
NAME_WIDTH = 18


def timeline(spans: Iterable[Span], actors: Sequence[str], started: float, ended: float, width: int = 72) -> str:
    """Draw what each actor did between two moments, one character for each `1 / width` of the time.

    A character shows work if work fills a third of its time or more, since reads and copies run beside the waits of
    the actor that started them; otherwise whatever fills most of it.
    """
    column_seconds = (ended - started) / width
    rows: dict[str, list[dict[str, float]]] = {actor: [{} for _ in range(width)] for actor in actors}
    for span in spans:
        if span.actor not in rows:
            continue
        first = max(0, int((span.started - started) / column_seconds))
        for column in range(first, min(width, int((span.ended - started) / column_seconds) + 1)):
            left = started + column * column_seconds
            overlap = min(span.ended, left + column_seconds) - max(span.started, left)
            if overlap > 0:
                cell, glyph = rows[span.actor][column], GLYPHS[span.what]
                cell[glyph] = cell.get(glyph, 0.0) + overlap
    return "\n".join(
        f"{actor:{NAME_WIDTH}}▕{''.join(_glyph(cell, column_seconds) for cell in cells)}▏"
        for actor, cells in rows.items()
    )


def _glyph(cell: dict[str, float], column_seconds: float) -> str:
    if cell.get(WORK, 0.0) >= column_seconds / 3:
        return WORK
    return max(cell, key=lambda glyph: cell[glyph], default=NOTHING)
