"""A recorded run as one page: no script, no network, nothing beside the file."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.formats.parts import LAYER_PARTS, kind_of
from pipeline.system.written_files import writing
from pipeline.tools.trace.charts import overview_chart, readable_window, timeline_chart
from pipeline.tools.trace.expert_chart import expert_chart, expert_wants, found_sentence, span_of
from pipeline.tools.trace.gaps import CAUSES
from pipeline.tools.trace.journeys import computations, pass_starts
from pipeline.tools.trace.lane_rows import LEGEND, cause_style
from pipeline.tools.trace.recording import Recording
from pipeline.tools.trace.sections import of_section
from pipeline.tools.trace.summary import Summary, duration, summarize
from pipeline.tools.trace.svg import Scale, shortened

STYLE = Path(__file__).with_name("style.css")
"""How the page looks on a bright screen, on a dark one, and on paper."""


def report_html(recording: Recording) -> str:
    """The page. A recording without computations gives a page that says so."""
    summary = summarize(recording)
    sections = _sections(recording, summary) if recording.spans else []
    found = [(key, recording.configuration.get(key)) for key in ("command", "model", "policy", "device")]
    named = [f"{value}" if key in ("command", "model") else f"{key} {value}" for key, value in found if value]
    title = " · ".join(named) or "a recorded run"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(summary.headline)}</title>\n<style>{STYLE.read_text()}</style>\n</head>\n<body>",
            f"<header><p>penstock report · {escape(title)}</p>\n<h1>{escape(summary.headline)}</h1></header>",
            *sections,
            _section("Configuration", "", _configuration(recording.configuration)),
            "</body>\n</html>\n",
        ]
    )


def write_report(path: Path, recording: Recording) -> None:
    """Write the page. Raises ConfigError when it cannot be written there."""
    try:
        with writing(path) as file:
            file.write(report_html(recording).encode())
    except OSError as error:
        raise ConfigError(f"report {path}: cannot be written: {error.strerror or error}") from error


def _sections(recording: Recording, summary: Summary) -> list[str]:
    window, zero = readable_window(recording, summary), recording.zero
    if window[1] <= window[0] or not summary.names:
        return []
    caption = (
        f"From {duration(window[0] - zero)} to {duration(window[1] - zero)} of the trace. Each slice is one "
        "weight group; a disk or link that has several at a time shows them one after the other, as they end."
    )
    chart = f'<div class="scroll">{timeline_chart(recording, summary, window)}</div>'
    sections = [_tiles(recording, summary), _section("Overlap", caption, chart + _legend(recording, summary))]
    if window[1] - window[0] < 0.95 * (summary.ended - summary.started):
        about = "How busy each resource was; above the computing, what the device waited for. Shaded: the window above."
        sections.append(_section("The whole run", about, overview_chart(recording, summary, window)))
    if wants := expert_wants(recording):
        about = (
            "By layer and time. The background: found where they are computed. Over it, in as many cases out of all: "
            "copied from host memory, and read from the disk. " + found_sentence(wants)
        )
        sections.append(_section("Experts", about, expert_chart(wants, Scale(recording.zero, *span_of(wants)))))
    about = f"Of {duration(summary.seconds)}. Hatched: idle, because those behind had no slot or no room."
    figures = [_section("Time per resource", about, _resource_table(summary))]
    if summary.groups:
        table = _cause_table(summary) if summary.waited_seconds else "<p>It never waited.</p>"
        about = "Following back the group whose computation ended the wait."
        figures.append(_section(f"What {summary.devices} waited for", about, table))
    return [*sections, f'<div class="two">{"".join(figures)}</div>']


def _section(heading: str, about: str, content: str) -> str:
    explained = f"<p>{escape(about)}</p>\n" if about else ""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{explained}{content}\n</section>"


def _tiles(recording: Recording, summary: Summary) -> str:
    starts = pass_starts(computations(recording.spans))
    tiles = {"measured": duration(summary.seconds), "passes": f"{summary.passes:,}"}
    if len(starts) > 1:
        tiles["per pass"] = duration((starts[-1].started - starts[0].started) / (len(starts) - 1))
    tiles["groups computed"] = f"{summary.groups:,}"
    if summary.groups:
        tiles["device computing"] = f"{1 - summary.waited_seconds / summary.seconds:.1%}"
        tiles["device waiting"] = duration(summary.waited_seconds)
    if summary.still_seconds:
        tiles["no request, left out"] = duration(summary.still_seconds)
    return f'<div class="tiles">{"".join(f"<div><b>{value}</b>{name}</div>" for name, value in tiles.items())}</div>'


def _legend(recording: Recording, summary: Summary) -> str:
    kinds = {kind_of(span.group) for span in recording.spans}
    entries = [
        f'<li><i class="pair" style="--even: var(--{kind}); --odd: var(--{kind}-odd)"></i>{name}'
        f"{' (even, odd layers)' if kind in LAYER_PARTS else ''}</li>"
        for kind, name in LEGEND.items()
        if kind in kinds
    ]
    entries += [
        f'<li><i class="waits {cause_style(cause)}"></i>waiting: {escape(cause)}</li>'
        for cause in CAUSES
        if any(piece.cause == cause for gap in summary.gaps for piece in gap.pieces)
    ]
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _bars(bars: Iterable[tuple[str, float]]) -> str:
    inner = "".join(f'<div class="bar {style}" style="width: {share:.2%}"></div>' for style, share in bars if share)
    return f'<td class="wide"><div class="track">{inner}</div></td>'


def _resource_table(summary: Summary) -> str:
    rows = "".join(
        f'<tr><td title="{escape(name)}">{escape(shortened(name))}</td>'
        f"{_bars([('', summary.shares[actor]), ('held', summary.held_back[actor])])}"
        f'<td class="number">{summary.shares[actor]:.1%}</td>'
        f'<td class="number">{duration(summary.shares[actor] * summary.seconds)}</td></tr>'
        for actor, name in summary.names.items()
    )
    return f'<table><tr><th></th><th></th><th class="number">busy</th><th class="number">time</th></tr>{rows}</table>'


def _cause_table(summary: Summary) -> str:
    most = max(summary.waited_in.values())
    rows = "".join(
        f'<tr><td title="{escape(CAUSES[cause][1])}">{escape(of_section(cause, section))}</td>'
        f"{_bars([(f'waits {cause_style(cause)}', seconds / most)])}"
        f'<td class="number">{seconds / summary.seconds:.1%}</td>'
        f'<td class="number">{duration(seconds)}</td></tr>'
        for (section, cause), seconds in summary.waited_in.items()
        if seconds
    )
    return (
        '<table><tr><th></th><th></th><th class="number">of all time</th><th class="number">time</th></tr>'
        f"{rows}</table>"
    )


def _configuration(configuration: Mapping[str, Any]) -> str:
    cells = (map(escape, pair) for pair in _flat(configuration))
    rows = "".join(f'<tr><td class="key">{name}</td><td class="value">{value}</td></tr>' for name, value in cells)
    return f"<table>{rows}</table>" if rows else "<p>The trace holds none.</p>"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(str(one) for one in value) or "none"
        else:
            yield f"{prefix}{key}", "none" if value is None or value == {} else str(value)
