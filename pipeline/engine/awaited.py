"""What lines wait for, in words, to say why a pass does not go on."""

from collections.abc import Sequence

from actors.core.line import Line

PASSED_OVER = ("room", "hop")
"""Waits for an actor further down, or for another line: that one's wait is told instead."""
WORDS = {
    "event": "bytes on their way from {filler}",
    "slot": "a slot",
    "companion": "KV blocks or experts",
    "request": "embedding rows",
    "result": "the end of what was launched",
}


def awaited(lines: Sequence[Line]) -> str:
    """For each line, what its last waiting actor waits for: all actors before that one wait because of it."""
    return "; ".join(filter(None, map(_awaited, lines)))


def _awaited(line: Line) -> str:
    for actor in reversed(line.actors):
        if (waits := actor.waits_for) is not None and waits[0] not in PASSED_OVER:
            what, message = waits
            filler = "" if message.at is None else message.at.filler
            words = WORDS.get(what, what).format(filler=filler)
            return f"{actor.name} waits for {words} at layer {message.layer} group {message.group!r}"
    return ""
