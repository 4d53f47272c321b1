"""Recordings of nodes: begun and ended on all, put together by one clock, and what becomes of them when a node dies."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.local_sections import open_here

from actors.core.trace import Span
from pipeline import Model
from pipeline.cluster import node_traces
from pipeline.cluster.cluster_sections import SectionDied
from pipeline.cluster.node_traces import measure_offset
from pipeline.cluster.section_calls import NodeTrace, NotBegun
from pipeline.engine.runtime import CLOCK
from pipeline.errors import ConfigError
from pipeline.system.hub_cache import BUNDLED
from pipeline.tools.commands.run_prompt import traced
from pipeline.tools.trace.perfetto import read_trace

MOVES: dict[str, Any] = {"device": "cpu-copy", "residency": False, "gpu_groups": 2, "host_groups": 2}
SLOW_SECONDS = 0.03
REST_SECONDS = 0.2
"""In which slots fill with the groups of the next pass."""


@pytest.fixture
async def model(anyio_backend: object, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Model]:
    """Of two nodes, whose layers are dealt in turn; the clock of the second is 1,000 s ahead."""
    monkeypatch.setattr("pipeline.cluster.open_on_cluster.HOP_SECONDS", 0.0)
    async with await open_here(BUNDLED, 2, **MOVES) as opened:
        opened.runtime.remote.ahead_seconds[1] = 1_000.0
        yield opened


async def answer(model: Model, tokens: int = 2) -> None:
    await model.generate([1, 2, 3], max_new_tokens=tokens, ignore_eos=True)


def computed(spans: tuple[Span, ...], actor: str = "compute_scheduler") -> list[int]:
    return [span.layer for span in spans if span.actor.startswith(actor) and span.what == "work"]


async def test_what_all_nodes_did_is_on_one_clock(model: Model) -> None:
    await answer(model)
    await asyncio.sleep(REST_SECONDS)
    started = CLOCK()
    async with model.recording() as trace:
        await answer(model)
        await asyncio.sleep(REST_SECONDS)
        assert not trace.spans, "they are on the nodes"
    ended, spans, counts = CLOCK(), trace.spans, trace.counts
    actors = ("disk_reader", "gpu_uploader", "compute_scheduler")
    assert {span.actor for span in spans} >= {f"{actor} {section}" for actor in actors for section in (0, 1)}
    assert {count.counter for count in counts} >= {"queue disk_reader 0", "slots host 1"}
    times = [span.ended for span in spans]
    assert times == sorted(times)
    assert [count.at for count in counts] == sorted(count.at for count in counts)
    assert started < times[0] < times[-1] < ended, "reads that had ended before are not told of"
    assert started < counts[0].at < counts[-1].at < ended
    layers, groups = computed(spans), model.runtime.describe()["groups_per_pass"]
    assert len(layers) == 2 * groups, "of these two passes, and no other"
    assert len(computed(spans, "disk_reader")) == 2 * groups, "to the last, which nobody has waited for"
    assert layers == sorted(layers[:groups]) * 2, "layer by layer, from one node to the other and back"
    await answer(model)
    assert trace.spans == spans


async def test_the_report_names_the_section_that_binds(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model.runtime.remote.nodes[1]._runtime.source
    read = source.read_into

    async def read_slowly(key: Any, buffer: Any) -> None:
        await asyncio.sleep(SLOW_SECONDS)
        await read(key, buffer)

    monkeypatch.setattr(source, "read_into", read_slowly)
    async with model.report(tmp_path / "report.html"):
        await answer(model, 3)
    page = (tmp_path / "report.html").read_text()
    assert "the disk in section 1" in re.findall("<h1>(.*?)</h1>", page)[0]
    for name in ("section 0 disk", "section 0 compute", "section 1 disk", "section 1 compute"):
        assert f">{name}<" in page
    first, second = model.runtime.describe()["sections"]
    assert (first["node"], second["node"], second["device"]) == ("here 0", "here 1", "cpu")
    assert sorted(first["layers"] + second["layers"][:-1]) == [*range(10)]
    assert second["layers"][-1] == "head"
    for one in (first, second):
        assert 0 < one["clock_uncertain_seconds"] < 0.1
        assert f"&#x27;clock_uncertain_seconds&#x27;: {one['clock_uncertain_seconds']}" in page


async def test_one_node_records_without_a_number(tmp_path: Path) -> None:
    async with await open_here(BUNDLED, 1, **MOVES) as model:
        async with traced(model, tmp_path / "trace.json", "run"):
            await answer(model)
        recording = read_trace(tmp_path / "trace.json")
    assert "disk_reader" in recording.actors
    assert recording.configuration["actors"][0] == "prefetch_planner"
    assert len(computed(recording.spans)) == 2 * recording.configuration["groups_per_pass"]


async def test_a_second_recording_is_refused(model: Model, tmp_path: Path) -> None:
    async with model.recording() as trace:
        with pytest.raises(ConfigError, match="another one, or a report, is under way"):
            async with model.report(tmp_path / "report.html"):
                pass
        await answer(model)
    assert trace.spans


@pytest.mark.parametrize("anew", [False, True])
async def test_a_node_that_dies_ends_the_recording(model: Model, anew: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Its process is not there, or was started anew; the other node is told that the recording has ended."""
    remote = model.runtime.remote
    ends, traces = remote.recorded, [one._runtime.trace for one in remote.nodes]

    async def died(number: int) -> NodeTrace:
        if number == 1:
            traces[1].recording = False
            if not anew:
                raise SectionDied("section 1", None, None, ConnectionError("its process has ended"))
        return await ends(number)

    remote.recorded = died
    said = (NotBegun, "record once more") if anew else (SectionDied, "section 1 failed: ConnectionError: its process")
    with pytest.raises(said[0], match=said[1]):
        async with model.recording() as trace:
            await answer(model)
    assert {span.actor[-1] for span in trace.spans} == {"0"}
    with caplog.at_level(logging.WARNING, "penstock"), pytest.raises(RuntimeError, match="mine"):
        async with model.recording():
            raise RuntimeError("mine")
    assert "the recording is not whole: " in caplog.text
    assert [one.recording for one in traces] == [False, False]
    remote.recorded = ends
    async with model.recording() as trace:
        await answer(model)
    assert {span.actor[-1] for span in trace.spans} == {"0", "1"}
    assert len(computed(trace.spans)) == 2 * model.runtime.describe()["groups_per_pass"], "of this recording alone"


async def test_what_nodes_have_dropped_is_said(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    ends = model.runtime.remote.recorded

    async def recorded(number: int) -> NodeTrace:
        return replace(await ends(number), dropped=3 + number)

    model.runtime.remote.recorded = recorded
    async with model.recording():
        await answer(model)
    assert "the trace is full: its oldest 7 spans and counts are gone" in caplog.text


async def test_a_recording_that_a_node_cannot_begin_begins_on_none(model: Model) -> None:
    begins, traces = model.runtime.remote.record, [one._runtime.trace for one in model.runtime.remote.nodes]

    async def record(number: int) -> None:
        if number == 1:
            raise SectionDied("section 1", None, None, ConnectionError("its process has ended"))
        await begins(number)

    model.runtime.remote.record = record
    with pytest.raises(SectionDied):
        async with model.recording():
            pytest.fail("it has not begun")
    assert [one.recording for one in traces] == [False, False]


async def test_the_shortest_call_tells_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is read at the beginning of long calls, which would be believed to be ahead too little."""
    now = 0.0

    def calls() -> Iterator[float]:
        yield from (0.5, 0.25, 0.0625, *[1.0] * (node_traces.ROUND_TRIPS - 3))

    lengths = calls()

    async def there() -> float:
        nonlocal now
        read = now + 1_000
        now += next(lengths)
        return read

    monkeypatch.setattr(node_traces, "CLOCK", lambda: now)
    offset = await measure_offset(there)
    assert offset.uncertain_seconds == 0.03125
    assert offset.seconds == 1_000 - 0.03125
    assert next(lengths, None) is None
