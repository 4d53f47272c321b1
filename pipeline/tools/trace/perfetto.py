"""Traces as files: Chrome's JSON trace events, which https://ui.perfetto.dev opens.

The format is described in "Trace Event Format" (Google, linked from Perfetto's page on other formats): complete events
("X") for spans, counter events ("C"), metadata events ("M") for names and order, and `bind_id` with `flow_out` and
`flow_in` for arrows. Times are microseconds.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from actors.core.trace import Count, Span
from pipeline.errors import ConfigError
from pipeline.system.small_files import open_plain_file
from pipeline.system.written_files import writing
from pipeline.tools.trace.journeys import Journeys, computations
from pipeline.tools.trace.recording import DISK, LINK, Recording
from pipeline.tools.trace.sections import SectionNumber, of_section, plain_names, section_of_counter
from pipeline.tools.trace.tracks import lay_out, track_name

FORMAT = 1
TRACE_LIMIT_CHARACTERS = 1 << 29
PROCESS = 1
ARGUMENTS = ("what", "layer", "group", "seq", "slot", "part")
"""The fields of a span that are arguments of its event."""
SHOWN_CHARACTERS = 120
"""How much of a damaged value an error message repeats."""


def write_trace(path: Path, recording: Recording) -> None:
    """Write a trace whose first moment is 0; compressed when the name ends in ".gz".

    The file appears when it is complete; one recording always gives the same bytes. Raises ConfigError when it cannot.
    """
    head = {"penstock": {"format": FORMAT, "configuration": dict(recording.configuration)}}
    try:
        with writing(path) as plain, _encoded(plain, compressed=_compressed(path)) as file:
            file.write('{"otherData": ' + _dump(head) + ',\n"traceEvents": [')
            for index, event in enumerate(_events(recording)):
                file.write((",\n" if index else "\n") + _dump(event))
            file.write("\n]}\n")
    except OSError as error:
        raise ConfigError(f"trace {path}: cannot be written: {error.strerror or error}") from error


def read_trace(path: Path) -> Recording:
    """Read a file of `write_trace`. Raises ConfigError for anything else, naming the file and what is wrong with it."""
    try:
        with open_plain_file(path) as plain, _decoded(path, plain) as file:
            text = file.read(TRACE_LIMIT_CHARACTERS + 1)
        if len(text) > TRACE_LIMIT_CHARACTERS:
            raise ConfigError(f"trace {path}: need at most {TRACE_LIMIT_CHARACTERS} characters, have more; cut it")
        content = json.loads(text, object_hook=_decode)
    except OSError as error:
        raise ConfigError(f"trace {path}: cannot be read: {error.strerror or error}") from error
    except EOFError as error:
        raise ConfigError(f"trace {path}: truncated: the compressed data end too early; record it again") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"trace {path}: {_fault(error)}") from error
    except zlib.error as error:
        raise ConfigError(f"trace {path}: not a trace: the compressed data are damaged: {error}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"trace {path}: not a trace: it is not JSON text") from error
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        fault = f"an event lacks what ours have: {_shortly(error)}"
        raise ConfigError(f"trace {path}: not a trace of penstock: {fault}") from error
    return _recording(path, content)


def _compressed(path: Path) -> bool:
    return path.name.endswith(".gz")


@contextmanager
def _encoded(file: BinaryIO, *, compressed: bool) -> Iterator[IO[str]]:
    """Text for a file; what gzip would say about the file's name and time is left out, since it differs each time."""
    if compressed:
        packed = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)
        with packed, io.TextIOWrapper(packed, encoding="utf-8") as text:
            yield text
    else:
        plain = io.TextIOWrapper(file, encoding="utf-8")
        yield plain
        plain.detach()  # flushes, and leaves the file open for its opener


def _decoded(path: Path, plain: BinaryIO) -> IO[str]:
    if _compressed(path):
        return gzip.open(plain, "rt", encoding="utf-8")
    return io.TextIOWrapper(plain, encoding="utf-8")


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _nanoseconds(seconds: float, zero: float) -> int:
    return round((seconds - zero) * 1e9)


def _microseconds(nanoseconds: int) -> float:
    """A fifth of a nanosecond more than the time, so that readers that multiply and then cut or round get it back."""
    return (10 * nanoseconds + 2) / 10_000


def _events(recording: Recording) -> Iterator[Mapping[str, Any]]:
    spans, actors = recording.spans, recording.actors
    zero = recording.zero
    times = [(_nanoseconds(span.started, zero), _nanoseconds(span.ended, zero)) for span in spans]
    tracks = lay_out(spans, times, actors)
    threads = {track: thread for thread, track in enumerate(sorted(set(tracks)), start=PROCESS + 1)}
    sections = {actor: section for actor, (_, section) in plain_names(actors).items()}
    for section in sorted(set(sections.values()), key=lambda one: one or 0) or [None]:
        named = {"ph": "M", "pid": _process(section), "name": "process_name"}
        yield {**named, "args": {"name": of_section("penstock", section)}}
    for track, thread in threads.items():
        named = {"ph": "M", "pid": _process(sections[actors[track.actor]]), "tid": thread}
        yield {**named, "name": "thread_name", "args": {"name": track_name(track, actors)}}
        yield {**named, "name": "thread_sort_index", "args": {"sort_index": thread}}
    arrows = _arrows(spans)
    for span, (started, ended), track in zip(spans, times, tracks, strict=True):
        yield {
            "ph": "X",
            "pid": _process(sections[span.actor]),
            "tid": threads[track],
            "ts": _microseconds(started),
            "dur": _microseconds(ended - started),
            "cat": span.actor,
            "name": f"L{span.layer} {span.group}" if span.what == "work" else span.what,
            "args": {name: getattr(span, name) for name in ARGUMENTS},
            **arrows.get(id(span), {}),
        }
    for count in recording.counts:
        at = _microseconds(_nanoseconds(count.at, zero))
        # Perfetto names the track by both, so that it is called as the counter is.
        name, _, series = count.counter.partition(" ")
        section = section_of_counter(count.counter) if any(sections.values()) else None
        yield {"ph": "C", "pid": _process(section), "ts": at, "name": name, "args": {series: count.value}}


def _process(section: SectionNumber) -> int:
    """Each section is a process of its own in the viewer."""
    return PROCESS + (section or 0)


def _arrows(spans: Sequence[Span]) -> dict[int, dict[str, Any]]:
    """Return the arrows from each group's read over its upload to its computation, by identity of the span."""
    journeys, added = Journeys(spans), dict[int, dict[str, Any]]()
    for span in computations(spans):
        way = [work for work in (journeys.before(DISK, span), journeys.before(LINK, span)) if work is not None]
        if not way:
            continue
        ticket = added.get(id(way[0]), {}).get("bind_id", f"{len(added) + 1:#x}")
        added[id(span)] = {"bind_id": ticket, "flow_in": True}
        for place, work in enumerate(way):
            added[id(work)] = {"bind_id": ticket, "flow_out": True} | ({"flow_in": True} if place else {})
    return added


def _decode(found: dict[str, Any]) -> object:
    """Turn events into what they stand for while the file is parsed, so that a long trace fits into memory."""
    if "ph" not in found or "pid" not in found:
        return found
    if found["ph"] == "X":
        args, started = found["args"], _read_nanoseconds(found["ts"])
        ended = started + _read_nanoseconds(found["dur"])
        actor, (what, layer, group, seq, slot, part) = str(found["cat"]), (args[name] for name in ARGUMENTS)
        key = int(layer), str(group), int(seq)
        return Span(actor, str(what), *key, started / 1e9, ended / 1e9, int(slot), int(part))
    if found["ph"] == "C":
        ((series, value),) = found["args"].items()
        counter = f"{found['name']} {series}" if series else str(found["name"])
        return Count(counter, _read_nanoseconds(found["ts"]) / 1e9, int(value))
    return None


def _read_nanoseconds(microseconds: object) -> int:
    if not isinstance(microseconds, int | float):
        raise TypeError(f"need a number of microseconds, have {_shortly(microseconds)}")
    return int(microseconds * 1000)


def _shortly(value: object) -> str:
    """A value as an error message shows it, however long it is."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _fault(error: json.JSONDecodeError) -> str:
    text = error.doc.strip()
    if not text:
        return "not a trace: the file is empty"
    if text[0] not in "{[":
        return "not a trace: it is not JSON text"
    if error.pos >= len(error.doc.rstrip()) - 1 or not text.endswith(("]}", "]", "}")):
        return f"truncated: the text ends in the middle, at line {error.lineno}; record it again"
    return f"not a trace: line {error.lineno} is not JSON: {error.msg}"


def _recording(path: Path, content: Any) -> Recording:
    events = content.get("traceEvents") if isinstance(content, dict) else None
    if not isinstance(events, list):
        raise ConfigError(f'trace {path}: not a trace: need a JSON object with a list "traceEvents"')
    other = content.get("otherData")
    head = other.get("penstock") if isinstance(other, dict) else None
    if not isinstance(head, dict) or not isinstance(head.get("configuration"), dict):
        raise ConfigError(f"trace {path}: not a trace of penstock: another tool wrote it")
    if head.get("format") != FORMAT:
        raise ConfigError(f"trace {path}: need format {FORMAT}, have {_shortly(head.get('format'))}; record it again")
    actors = head["configuration"].get("actors", [])
    if not isinstance(actors, list) or not all(isinstance(name, str) for name in actors):
        need = 'need a list of names as the configuration\'s "actors"'
        raise ConfigError(f"trace {path}: not a trace of penstock: {need}, have {_shortly(actors)}")
    spans = tuple(event for event in events if isinstance(event, Span))
    counts = tuple(event for event in events if isinstance(event, Count))
    return Recording(spans, counts, head["configuration"])
