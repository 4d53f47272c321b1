"""Opening a model, its first group, and what the runtime itself costs."""

import json
from pathlib import Path

import pytest

import pipeline.tools.bench.opening as opening
from pipeline.api import BUNDLED
from pipeline.cli import main
from pipeline.tools.bench.opening import OpeningReport, bench_opening


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "IDLE_SECONDS", 0.2)


@pytest.mark.usefixtures("everything_moves", "short")
async def test_everything_is_measured_in_every_round() -> None:
    one = await bench_opening(BUNDLED, {"device": "cpu"}, 2, 3, lambda text: None)
    assert (one.model, one.groups) == ("bundled", 24)
    assert 15e6 < one.streamed_bytes < 17e6
    for name in ("open", "first_group", "line_read", "first_read", "rested_group", "pass", "loop_group"):
        values = getattr(one, f"{name}_seconds")
        assert len(values) == 2
        assert min(values) > 0
    assert 0 <= min(one.idle_share) < 0.5


def test_the_first_group_is_held_against_its_read_round_by_round() -> None:
    one = OpeningReport(
        model="m",
        groups=1,
        moving_groups=1,
        streamed_bytes=1,
        open_seconds=(1.0,),
        first_group_seconds=(1.1, 4.0, 2.4),
        line_read_seconds=(1.0, 2.0, 2.2),
        first_read_seconds=(1.0, 1.0, 2.0),
        rested_group_seconds=(1.0,),
        pass_seconds=(1.0,),
        loop_group_seconds=(1.0,),
        idle_share=(0.0,),
    )
    assert one.first_ratio == pytest.approx(1.2)
    assert one.as_dict()["first_ratio"] == one.first_ratio


@pytest.mark.usefixtures("everything_moves", "short")
def test_a_row_for_each_model_before_one_that_ends_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["bench", "open", "--rounds", "1", "--passes", "1", "--device", "cpu", str(BUNDLED)]
    assert main([*command, str(BUNDLED), "--no-residency"]) == 0
    _, units, *rows = capsys.readouterr().out.splitlines()
    assert "us/group" in units
    assert [row.split()[:2] for row in rows] == [["bundled", "24"]] * 2
    assert main([*command, str(tmp_path), "--json"]) == 1
    assert [one["model"] for one in json.loads(capsys.readouterr().out)] == ["bundled"]
    assert main(["bench", "open", str(BUNDLED), "--rounds", "0"]) == 1
    assert "--rounds: need at least 1, have 0" in capsys.readouterr().err
