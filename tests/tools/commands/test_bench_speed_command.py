"""`penstock bench speed` as people use it: its table, its JSON, what it refuses."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

import pipeline.tools.commands.bench_speed as command
from pipeline.api import BUNDLED
from pipeline.cli import main
from pipeline.tools.bench.arm_program import ArmRun
from pipeline.tools.bench.speed import OURS, WITHOUT


def bench(*arguments: str) -> int:
    return main(["bench", "speed", str(BUNDLED), *arguments])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is run, answered with figures made up."""
    calls: list[tuple[Any, ...]] = []

    async def run(bench: Any, names: Sequence[str], rounds: int) -> list[ArmRun]:
        calls.append((bench.settings, bench.passes, bench.limit, list(names), rounds))
        floors = {"read": [0.4], "upload": [0.0], "compute": [0.1]}
        ours = {
            "pass_seconds": [0.42, 0.44],
            "read_bytes_per_pass": 1e9,
            "token_ids": [1, 2, 3],
            "floors": floors,
            "moving_groups": 0,
        }
        other = {
            "pass_seconds": [0.86, 0.86],
            "read_bytes_per_pass": 2e9,
            "token_ids": [1, 2, 4],
            "floors": {},
            "moving_groups": 24,
        }
        rows = {OURS: ours, "without residency": other}
        return [ArmRun(name, 0, 10**9, [rows[name]] if name in rows else []) for name in names]

    monkeypatch.setattr(command.SpeedBench, "run", run)
    monkeypatch.setattr(command.SpeedBench, "check", lambda *_: None)
    return calls


def test_a_row_for_each_arm(asked: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--arms", OURS, "without residency", "--against", "accelerate", "--passes", "4", "--rounds", "3") == 0
    _, _, ours, without, accelerate, told, empty, still = capsys.readouterr().out.splitlines()
    figures = "0.430 0.422-0.438 2 1.00 1 GB 1.075 0.400 0.100 1 GB 3/3"
    assert ours.split() == [OURS, *figures.split()]
    assert without.split()[2:6] == ["0.860", "0.860-0.860", "2", "0.50"]
    assert without.split()[-1] == "2/3", "up to the first difference"
    assert accelerate.split() == ["accelerate", *["-"] * 10]
    assert told == "accelerate: over the memory limit"
    assert empty == ""
    assert still.startswith("Nothing moved in penstock: all weight groups stayed in memory, so these rows do not tell")
    assert still.endswith("--no-residency lets all of them move, a smaller --memory-limit some.")
    names = [OURS, "without residency", "accelerate"]
    assert asked == [({}, 4, None, names, 3)]


def test_json_has_every_pass_and_a_limit_is_what_ours_plans_with(
    asked: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--memory-limit", "1.8GB", "--limit-by", "watchdog", "--json") == 0
    runs = json.loads(capsys.readouterr().out)
    assert [run["arm"] for run in runs] == list(WITHOUT)
    assert runs[0]["passes"]["pass_seconds"] == [0.42, 0.44]
    ((settings, _, limit, _, _),) = asked
    assert settings["host_memory"] == limit.nbytes == 1_800_000_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--passes", "0"], "--passes: need at least 1, have 0"),
        (["--rounds", "0"], "--rounds: need at least 1, have 0"),
        (["--arms", "fast"], "--arms: need some of 'penstock', 'without residency'"),
        (["--against", "vllm"], "--against: need some of accelerate, transformers, llama.cpp, have 'vllm'"),
    ],
    ids=str,
)
def test_what_can_never_work_is_refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*arguments) == 1
    assert says in capsys.readouterr().err
