"""Recordings of several lines, one for each section of a model: their actors bear its number behind their names."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TypeAlias

from actors.core.trace import Count, Span
from pipeline.tools.trace.recording import OWN, Recording

SectionNumber: TypeAlias = int | None
"""None where there is one line, whose actors bear no number."""
NUMBERED = re.compile(r"(.+) (\d+)")


def plain_names(actors: Iterable[str]) -> dict[str, tuple[str, SectionNumber]]:
    """By name of each of these actors, its name without a number, and the number of its section."""
    matches = {actor: NUMBERED.fullmatch(actor) for actor in actors}
    several = any(match is not None and match[1] in OWN for match in matches.values())
    return {
        actor: (match[1], int(match[2])) if several and match is not None else (actor, None)
        for actor, match in matches.items()
    }


def spans_by_section(spans: Iterable[Span]) -> dict[SectionNumber, list[Span]]:
    """The spans of each section in their order, with the names of actors without its number."""
    spans = list(spans)
    names = plain_names({span.actor for span in spans})
    if all(section is None for _, section in names.values()):
        return {None: spans}
    found: defaultdict[SectionNumber, list[Span]] = defaultdict(list)
    for span in spans:
        plain, section = names[span.actor]
        found[section].append(span._replace(actor=plain))
    return dict(sorted(found.items(), key=lambda item: item[0] or 0))


def by_section(recording: Recording) -> dict[SectionNumber, Recording]:
    """What each section did, as if it were the only one; the recording itself where there is one line."""
    spans = spans_by_section(recording.spans)
    if list(spans) == [None]:
        return {None: recording}
    counts: defaultdict[SectionNumber, list[Count]] = defaultdict(list)
    for count in recording.counts:
        if (section := section_of_counter(count.counter)) is not None:
            counts[section].append(count._replace(counter=count.counter.removesuffix(f" {section}")))
    actors: defaultdict[SectionNumber, list[str]] = defaultdict(list)
    for plain, section in plain_names(recording.actors).values():
        actors[section].append(plain)
    return {
        section: Recording(tuple(own), tuple(counts[section]), {**recording.configuration, "actors": actors[section]})
        for section, own in spans.items()
    }


def section_of_counter(counter: str) -> SectionNumber:
    """The section of a counter, where there are several lines; None for what is counted without one."""
    match = NUMBERED.fullmatch(counter)
    return None if match is None else int(match[2])


def of_section(name: str, section: SectionNumber) -> str:
    """What people call something of a section."""
    return name if section is None else f"section {section} {name}"


def in_sections(name: str, sections: Iterable[SectionNumber]) -> str:
    """The same in a sentence, for one or more sections."""
    numbers = [str(section) for section in sections if section is not None]
    if not numbers:
        return name
    return f"{name} in section{'s' if len(numbers) > 1 else ''} {enumerated(numbers)}"


def enumerated(names: Iterable[str]) -> str:
    """Names in a sentence: a, b and c."""
    *before, last = names
    return " and ".join(filter(None, [", ".join(before), last]))
