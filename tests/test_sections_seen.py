"""Sections are seen beside each other: in statistics, in reports, on the page, in metrics and in what a run says."""

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest
from support.servers import serving

from pipeline import Model
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.server.line_frame import Moment, line_frame
from pipeline.tools.commands.run_lines import closing_lines, layers_said, opening_lines

PROMPT = "import os\n"
TWO: dict[str, Any] = {"devices": ["cpu-copy", "cpu-copy"], "residency": False, "gpu_groups": 2, "host_groups": 2}
SLOW_SECONDS = 0.04


def slow_down(runtime: ModelRuntime, section: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each read of a section take longer, as on a slower disk."""
    read, own = runtime.source.read_into, runtime.sections[section].catalog.host

    async def read_into(key: Any, buffer: Any) -> None:
        await asyncio.sleep(SLOW_SECONDS if key in own else 0)
        await read(key, buffer)

    monkeypatch.setattr(runtime.source, "read_into", read_into)


async def test_a_slow_section_shows_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Model.open(**TWO) as model:
        opening = opening_lines(model)
        slow_down(model.runtime, 1, monkeypatch)
        before = Moment(time.perf_counter(), model.statistics())
        async with model.report(tmp_path / "report.html"):
            async for chunk in model.stream(PROMPT, max_new_tokens=4, ignore_eos=True):
                if chunk.finish_reason is None:
                    now = Moment(time.perf_counter(), model.statistics())
        await model.runtime.source.rested(10**9)
        said = model.statistics()
    first, second = said.sections
    was = before.counted.sections
    waited = [one.waited_seconds - earlier.waited_seconds for one, earlier in zip(said.sections, was, strict=True)]
    assert waited[1] > 4 * waited[0], waited
    page = (tmp_path / "report.html").read_text()
    for name in ("section 0 disk", "section 0 compute", "section 1 disk", "section 1 compute"):
        assert f">{name}<" in page
    assert "the disk in section 1" in re.findall("<h1>(.*?)</h1>", page)[0]

    assert sorted(first.layers + second.layers) == [*range(10)]
    assert [(one.number, one.has_head) for one in said.sections] == [(0, False), (1, True)]
    assert said.bytes_read == first.bytes_read + second.bytes_read
    assert said.bytes_uploaded == first.bytes_uploaded + second.bytes_uploaded
    assert said.moving_groups == first.moving_groups + second.moving_groups == first.groups + second.groups
    assert first.busy_seconds["disk_reader"] == said.busy_seconds["disk_reader 0"]
    assert second.stalled_seconds["compute_scheduler"] == said.stalled_seconds["compute_scheduler 1"]
    blocks = said.kv_blocks.places["device"]
    assert blocks.layers == sum(one.kv.layers["device"] for one in said.sections) == 10
    assert blocks.total_bytes == said.kv_blocks.total * sum(one.kv.block_bytes["device"] for one in said.sections)

    frame = line_frame(before, now)
    rows = {row["label"]: row for list_ in ("actors", "budgets", "links", "tiers") for row in frame[list_]}
    assert [row["label"] for row in frame["actors"][:2]] == ["Disk reader 0", "Disk reader 1"]
    assert [row["label"] for row in frame["budgets"]] == ["Host memory 0", "Host memory 1", "Device 0", "Device 1"]
    assert "disk in section 1" in frame["says"]
    waits = {row["label"]: row["waited"] for row in frame["sections"]}
    assert waits[f"1 · cpu · {len(second.layers)} layers and the head"] > waits[f"0 · cpu · {len(first.layers)} layers"]
    assert rows["Host to device 1"]["bytes_per_second"] > 0
    assert rows["Disk 0"]["moving"] + rows["Disk 1"]["moving"] == sum(
        one.weights["disk"].moves for one in said.sections
    )

    for one in said.sections:
        assert (
            f"section {one.number}  cpu · {layers_said(one.layers)}{' and the head' * one.has_head}\nplan " in opening
        )
    lines = closing_lines(before.counted, said, 1.0)
    assert f"section 1  cpu · {len(second.layers)} layers and the head · passes waited" in lines
    assert lines.endswith("disk in section 1")


async def test_metrics_and_properties_have_a_section() -> None:
    async with serving(names=("small",), settings=TWO) as it:
        await it.client.post("/v1/completions", json={"model": "small", "prompt": PROMPT, "max_tokens": 2})
        told = (await it.client.get("/metrics")).text
        for line in (
            'queue_depth{queue="disk_reader",section="1"}',
            'slots_held{place="device",section="0"}',
            'bytes_streamed_total{link="h2d_weights",section="1"}',
            'stage_busy_seconds_total{section="0",stage="compute_scheduler"}',
            'section_waited_seconds_total{section="1"}',
            'budget_used_bytes{place="host",section="1"}',
        ):
            assert f"penstock:{line}" in told
        props = (await it.client.get("/props")).json()
        assert props["device"] == "cpu, cpu"
        assert sorted(layer for one in props["sections"] for layer in one["layers"]) == [*range(10)]
        assert props["slots"] == {"host 0": 2, "device 0": 2, "host 1": 2, "device 1": 2}


def test_layers_are_said_in_runs() -> None:
    assert layers_said([0, 1, 2, 4, 6, 7]) == "layers 0-2, 4, 6-7"
