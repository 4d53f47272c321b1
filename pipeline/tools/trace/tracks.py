"""Chooses the track of each span. Slices of one track never overlap, since a viewer would have to guess then."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from actors.core.trace import Span
from pipeline.tools.trace.recording import COMPUTE
from pipeline.tools.trace.sections import plain_names


@dataclass(frozen=True, slots=True, order=True)
class Track:
    """A row of slices.

    Attributes:
        actor: index of the actor in the line.
        waits: whether the row shows what the actor waited for, rather than its work.
        number: the slot that was worked on, or the micro-batch that was computed; -1 without one.
        overflow: counts rows that had to be added because two slices overlapped.
    """

    actor: int
    waits: bool
    number: int
    overflow: int


def lay_out(spans: Sequence[Span], nanoseconds: Sequence[tuple[int, int]], actors: Sequence[str]) -> list[Track]:
    """Return the track of each span, given when it started and ended."""
    positions = {actor: index for index, actor in enumerate(actors)}
    computing = {actor for actor, (plain, _) in plain_names(actors).items() if plain == COMPUTE}
    ends: defaultdict[tuple[int, bool, int], list[int]] = defaultdict(list)
    chosen: dict[int, Track] = {}
    for index in sorted(range(len(spans)), key=nanoseconds.__getitem__):
        span, (started, ended) = spans[index], nanoseconds[index]
        waits = span.what != "work"
        number = -1 if waits else span.part if span.actor in computing else span.slot
        row = ends[positions[span.actor], waits, number]
        overflow = next((place for place, free_at in enumerate(row) if free_at <= started), len(row))
        row[overflow : overflow + 1] = [ended]
        chosen[index] = Track(positions[span.actor], waits, number, overflow)
    return [chosen[index] for index in range(len(spans))]


def track_name(track: Track, actors: Sequence[str]) -> str:
    """Return the name beside the track, among those of its section."""
    actor, _ = plain_names(actors)[actors[track.actor]]
    number = ""
    if track.waits:
        number = " waits"
    elif track.number >= 0:
        number = f" {'micro-batch' if actor == COMPUTE else 'slot'} {track.number}"
    return f"{actor}{number}{f' ({track.overflow + 1})' if track.overflow else ''}"
