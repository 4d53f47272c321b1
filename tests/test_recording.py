"""Recording a model's work: when it is on, what it holds, and the files that come of it."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from actors.core.trace import Span
from pipeline import Model
from pipeline.api import BUNDLED
from pipeline.cli import main
from pipeline.engine.actor_names import PLANNER
from pipeline.errors import ConfigError
from pipeline.tools.trace.perfetto import read_trace
from pipeline.tools.trace.recording import COMPUTE, DISK, Recording

ACTORS = ["prefetch_planner", "disk_reader", "pinned_stager", "gpu_uploader", "compute_scheduler"]


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    async with Model.open(device="cpu") as opened:
        yield opened


def computed(spans: Sequence[Span]) -> list[tuple[int, str]]:
    return [(span.layer, span.group) for span in spans if span.actor == COMPUTE and span.what == "work"]


async def test_a_recording_holds_every_group_of_its_own_passes_and_no_other(model: Model) -> None:
    order = list(model.runtime.catalog.order)
    await model.generate([1, 2], max_new_tokens=2)
    for tokens in (3, 1):
        async with model.recording() as trace:
            assert (trace.spans, trace.counts) == ((), ()), "cleared"
            await model.generate([1, 2], max_new_tokens=tokens, ignore_eos=True)
        assert computed(trace.spans) == order * tokens, "to the very last, which has ended only just now"
        assert {span.actor for span in trace.spans} >= {PLANNER, COMPUTE}, "all stays: no group wakes the disk reader"
        assert trace.counts


async def test_outside_of_it_nothing_is_recorded(model: Model) -> None:
    trace = model.runtime.line.trace
    assert not trace.recording
    await model.generate([1, 2], max_new_tokens=2)
    assert (trace.spans, trace.counts) == ((), ())
    async with model.recording() as recorded:
        assert recorded is trace
        assert trace.recording
        await model.generate([1, 2], max_new_tokens=1)
    assert not trace.recording
    spans, counts = trace.spans, trace.counts
    await model.generate([1, 2], max_new_tokens=2)
    assert (trace.spans, trace.counts) == (spans, counts)


async def test_it_ends_when_what_was_recorded_fails(model: Model) -> None:
    with pytest.raises(RuntimeError, match="mine"):
        async with model.recording() as trace:
            raise RuntimeError("mine")
    assert not trace.recording


async def test_a_report_is_a_page_about_what_happened_meanwhile(model: Model, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    await model.generate([1, 2], max_new_tokens=3)
    async with model.report(page):
        await model.generate([1, 2], max_new_tokens=2, ignore_eos=True)
    text = page.read_text(encoding="utf-8")
    assert text.lower().startswith("<!doctype html>")
    assert "Model.report" in text
    assert f"<b>{2 * len(model.runtime.catalog.order)}</b>groups computed" in text
    assert "<b>2</b>passes" in text
    assert not model.runtime.line.trace.recording


async def test_a_report_that_cannot_be_written_is_an_error(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        async with model.report(tmp_path / "nowhere" / "page.html"):
            await model.generate([1, 2], max_new_tokens=1)
    assert list(tmp_path.iterdir()) == []


def whole(recording: Recording, command: str, passes: int) -> None:
    configuration = recording.configuration
    assert (configuration["command"], configuration["actors"]) == (command, ACTORS)
    assert len(computed(recording.spans)) == passes * configuration["groups_per_pass"]
    assert {span.actor for span in recording.spans if span.what == "work"} >= {DISK, COMPUTE}
    assert any(count.counter.startswith("queue ") for count in recording.counts)


def test_run_writes_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json.gz"
    arguments = ["--prompt", "class", "--max-new-tokens", "3", "--device", "cpu", "--policy", "stage2", "--temperature"]
    assert main(["run", str(BUNDLED), *arguments, "0", "--trace", str(path)]) == 0
    assert "bound by" in capsys.readouterr().err
    recording = read_trace(path)
    whole(recording, "run", 3)
    assert recording.configuration["policy"] == "stage2"
    assert recording.configuration["checksums"].startswith("on: ")
    assert recording.configuration["batch_invariant"] is False


@pytest.mark.usefixtures("everything_moves")
def test_bench_pass_writes_a_trace_of_its_last_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pass.json"
    assert main(["bench", "pass", str(BUNDLED), "--passes", "2", "--device", "cpu", "--trace", str(path)]) == 0
    assert "sequential" in capsys.readouterr().out
    whole(read_trace(path), "bench pass", 3)


def test_without_trace_no_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(BUNDLED), "--prompt", "class", "--max-new-tokens", "1", "--device", "cpu"]) == 0
    assert list(tmp_path.iterdir()) == []
