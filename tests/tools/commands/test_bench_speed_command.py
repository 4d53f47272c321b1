"""`penstock bench speed` as people use it: its table, its JSON, what it refuses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import pipeline.tools.commands.bench_speed as command
from pipeline.api import BUNDLED
from pipeline.cli import main
from pipeline.tools.bench.arm_program import ArmRun
from pipeline.tools.bench.pass_arm import Scenario
from pipeline.tools.bench.speed import OURS


def bench(*arguments: str) -> int:
    return main(["bench", "speed", str(BUNDLED), *arguments])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is run, answered with figures made up."""
    calls: list[tuple[Any, ...]] = []

    async def run(bench: Any, names: Sequence[str], rounds: int) -> None:
        calls.append((bench.settings, bench.scenarios, bench.limit, list(names), rounds))
        ours = {
            "pass_seconds": [0.42, 0.44],
            "read_bytes_per_pass": 1e9,
            "token_ids": [[1, 2, 3]],
            "floors": {"read": [0.4], "upload": [0.0], "compute": [0.1]},
            "moving_groups": 0,
            "device_bytes": 0,
        }
        other = {**ours, "pass_seconds": [0.86, 0.86], "token_ids": [[1, 2, 4]], "floors": {}, "moving_groups": 24}
        rows = {OURS: ours, "without residency": other}
        bench.runs += [
            ArmRun(name, 0, 10**9, [{"scenario": one.name, **rows[name]} for one in bench.scenarios])
            if name in rows
            else ArmRun(name, 0, 0, [], f"{name}: over the memory limit")
            for name in names
        ]
        if rounds == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.SpeedBench, "run", run)
    monkeypatch.setattr(command.SpeedBench, "check", lambda *_: None)
    return calls


def test_a_row_for_each_arm(asked: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--arms", OURS, "without residency", "--against", "accelerate", "--passes", "4", "--rounds", "3") == 0
    _, _, ours, without, accelerate, _, told, _, still = capsys.readouterr().out.splitlines()
    figures = "0.4300 0.4220-0.4380 2 1.00 1 GB 1.075 0.4000 0.1000 1 GB 3/3"
    assert ours.split() == [OURS, *figures.split()]
    assert without.split()[2:6] == ["0.8600", "0.8600-0.8600", "2", "0.50"]
    assert without.split()[-3:] == ["2/3", "from", "2"], "up to the first difference"
    assert accelerate.split() == ["accelerate", *["-"] * 10]
    assert told == "accelerate: over the memory limit"
    assert still.startswith("Nothing moved in penstock: all weight groups stayed in memory, so these rows do not tell")
    assert still.endswith("--no-residency lets all of them move, a smaller --memory-limit some.")
    names = [OURS, "without residency", "accelerate"]
    assert asked == [({}, [Scenario(passes=4)], None, names, 3)]


def test_a_row_for_each_arm_and_whatever_it_does(
    asked: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    more = ["--requests", "1,64", "--sampled", "64", "--prompt-tokens", "9", "--first-token", "512"]
    assert bench("--arms", OURS, "sequential", *more, "--beside", str(tmp_path)) == 1, "an arm of ours has no figures"
    arms = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    ((_, scenarios, _, names, _),) = asked
    assert [one.name for one in scenarios] == ["1 greedy", "64 greedy", "64 sampled", "first of 512"]
    assert {one.prompt_tokens for one in scenarios} == {9, 512}
    assert names == [OURS, "sequential", f"{OURS}, the other tree"]
    assert [arms.count(name) for name in names] == [4, 1, 4], "what an arm does not do is no row"


def test_what_llama_cpp_runs_of_a_quantised_checkpoint_is_told(
    asked: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, told in ((BUNDLED, 0), (BUNDLED.with_name("bundled-int4"), 1)):
        assert main(["bench", "speed", str(folder), "--arms", OURS, "--against", "llama.cpp"]) == 0
        assert capsys.readouterr().out.count("as Q4_0, 4.5 bits a number") == told


def test_an_early_end_prints_what_is_complete(asked: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--arms", OURS, "--rounds", "9") == 130
    assert "0.4300" in capsys.readouterr().out


def test_floors_of_a_gpu_are_told_below(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "h2d_bytes_per_second": 50e9,
        "memory_bytes_per_second": 3e12,
        "operations_per_second": 6e14,
        "pass_bytes": 15_000_000_000,
    }
    told = command._floors([ArmRun("floors", 0, 0, [row]), ArmRun(OURS, 0, 0, [])])
    assert "50 GB/s" in told
    assert "15 GB: 0.3000 s over the link, 0.0050 s from its memory, and computing a token of a prompt 25.0 us" in told
    assert command._floors([ArmRun(OURS, 0, 0, [])]) == ""


def test_json_has_every_pass_and_a_limit_is_what_ours_plans_with(
    asked: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["--arms", OURS, "without residency"]
    assert bench("--memory-limit", "1.8GB", "--limit-by", "watchdog", "--json", *arms) == 0
    runs = json.loads(capsys.readouterr().out)
    assert [run["arm"] for run in runs] == arms[1:]
    assert runs[0]["rows"][0]["pass_seconds"] == [0.42, 0.44]
    ((settings, _, limit, _, _),) = asked
    assert settings["host_memory"] == limit.nbytes == 1_800_000_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--passes", "0"], "--passes: need at least 1, have 0"),
        (["--rounds", "0"], "--rounds: need at least 1, have 0"),
        (["--requests", "1,x"], "--requests: need numbers from 1 on, such as 16 or 1,4,16,64; have '1,x'"),
        (["--first-token", "0"], "--first-token: need numbers from 1 on"),
        (["--arms", "fast"], "--arms: need some of 'penstock', 'from host memory', 'without residency'"),
        (
            ["--against", "vllm"],
            "--against: need some of accelerate, transformers, llama.cpp, diffusers, ring, graphs, have 'vllm'",
        ),
    ],
    ids=str,
)
def test_what_can_never_work_is_refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*arguments) == 1
    assert says in capsys.readouterr().err
