"""`penstock bench throughput` as people use it: its table, its JSON, its arms, what it refuses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import pipeline.tools.commands.bench_throughput as command
from pipeline.api import BUNDLED
from pipeline.cli import main
from pipeline.tools.bench.arm_program import ArmRun
from pipeline.tools.bench.arms import ACCELERATE, OURS, Arms
from pipeline.tools.bench.load import Load
from pipeline.tools.bench.throughput import Throughput

SMALL = ("--requests", "1,3", "--prompt-tokens", "4", "--new-tokens", "2", "--device", "cpu")
HEADINGS = ["requests", "passes", "tokens/s", "pass", "tokens", "first token", "p90", "next token", "read", "read"]
HEADINGS += ["compute", "larger /"]


def bench(*arguments: object) -> int:
    return main(["bench", "throughput", str(BUNDLED), *map(str, arguments)])


def row(requests: int, tokens_per_second: float, token_ids: Sequence[Sequence[int]]) -> Throughput:
    ids = tuple(map(tuple, token_ids))
    return Throughput(requests, 8, 2.0, tokens_per_second, 0.25, 4.0, 5.5, 0.5, 0.75, None, 2e6, 1e6, ids, 24, 0.2, 0.1)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command asks for, answered with figures made up, so that nothing is run."""
    asked: list[tuple[Any, ...]] = []

    async def bench_throughput(*arguments: Any) -> list[Throughput]:
        asked.append(arguments[:-1])
        return [row(count, 10.0 * count, [[1]]) for count in arguments[3]]

    monkeypatch.setattr(command, "bench_throughput", bench_throughput)
    return asked


def test_one_row_for_each_number_of_requests(
    measured: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*SMALL, "--gpu-groups", "6", "--seed", "7") == 0
    captured = capsys.readouterr()
    names, _, *rows = captured.out.splitlines()
    assert [name.strip() for name in names.split("  ") if name.strip()] == HEADINGS
    assert [line.split()[:5] for line in rows] == [
        ["1", "8", "10.00", "0.250", "5.5"],
        ["3", "8", "30.00", "0.250", "5.5"],
    ]
    assert [line.split()[5:] for line in rows] == [["0.500", "0.750", "-", "1", "MB", "0.200", "0.100", "0.800"]] * 2
    assert captured.err.startswith("loading torch")
    settings = {"gpu_groups": 6, "device": "cpu"}
    assert measured == [(BUNDLED, settings, Load(4, 4, 2, seed=7), [1, 3])]


def test_prompts_of_a_range_and_poisson_arrivals(measured: list[tuple[Any, ...]]) -> None:
    assert bench(*SMALL, "--prompt-tokens", "8-64", "--arrival", "poisson:2.5") == 0
    assert measured[0][2] == Load(8, 64, 2, arrivals_per_second=2.5)


def test_json_of_a_run_in_a_process_of_its_own_under_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command on the bundled model, twice: the arm is the same command without the limit."""
    assert bench(*SMALL, "--memory-limit", "2GB", "--limit-by", "watchdog", "--rounds", "1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["memory_limit_bytes"], told["limit_by"]) == (2_000_000_000, "watchdog")
    assert (told["prompt_tokens"], told["new_tokens"], told["arrivals_per_second"]) == ([4, 4], 2, None)
    (run,) = told["runs"]
    assert (run["arm"], run["round"]) == (OURS, 0)
    assert 10**8 < run["peak_bytes"] < 2 * 10**9
    assert [row["requests"] for row in run["rows"]] == [1, 3]
    for row in run["rows"]:
        assert [len(ids) for ids in row["token_ids"]] == [2] * row["requests"]
        assert row["passes"] == 2
        assert row["floor_share"] > 0


def test_arms_stand_below_each_other_and_their_tokens_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(arms: Arms, against: str | None, rounds: int) -> list[ArmRun]:
        assert (against, rounds) == (ACCELERATE, 2)
        runs = []
        for index, rate in enumerate((10.0, 14.0)):
            theirs = row(3, rate / 4, [[1, 2], [3, 9], [5, 6]]).as_dict()
            for name in ("first_token_seconds_p90", "read_floor_seconds", "compute_floor_seconds", "floor_share"):
                del theirs[name]
            ours = row(3, rate, [[1, 2], [3, 4], [5, 6]]).as_dict()
            runs += [ArmRun(OURS, index, 10**9, [ours]), ArmRun(ACCELERATE, index, 1800 * 10**6, [theirs])]
        return runs

    monkeypatch.setattr(Arms, "run", run)
    monkeypatch.setattr(Arms, "check", lambda arms, against: None)
    assert bench(*SMALL, "--against", "accelerate", "--rounds", "2") == 0
    _, _, ours, theirs, empty, said = capsys.readouterr().out.splitlines()
    assert ours.split()[:4] == ["penstock", "3", "8", "12.00"]
    assert ours.split()[-4:] == ["0.800", "10.00-14.00", "1", "GB"]
    assert theirs.split()[:4] == ["accelerate", "3", "8", "3.00"]
    assert theirs.split()[-6:] == ["-", "-", "-", "2.50-3.50", "1.8", "GB"]
    assert empty == ""
    assert said == (
        "3 requests: 4.00 x accelerate's tokens/s; 2 requests and 5 of 6 tokens agree up to the first difference"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--requests", "0"], "--requests: need numbers from 1 on"),
        (["--requests", "1,,4"], "have '1,,4'"),
        (["--prompt-tokens", "0"], "--prompt-tokens: need a number or a range such as 8-64, have '0'"),
        (["--prompt-tokens", "9-8"], "have '9-8'"),
        (["--new-tokens", "0"], "--new-tokens: need at least 1, have 0"),
        (["--arrival", "poisson:0"], "--arrival: need poisson:RATE"),
        (["--arrival", "burst:3"], "have 'burst:3'"),
        (["--arrival", "poisson:inf"], "have 'poisson:inf'"),
        (["--gpu-groups", "0"], "gpu_groups"),
        (["--rounds", "2"], "need --against or --memory-limit"),
        (["--limit-by", "watchdog"], "--limit-by: need --memory-limit"),
        (["--memory-limit", "lots"], "--memory-limit: need bytes, or a size as"),
        (["--memory-limit", "1GB", "--limit-by", "hope"], "--limit-by: need one of systemd, cgroup, watchdog"),
        (["--memory-limit", "1GB", "--limit-by", "watchdog", "--rounds", "0"], "--rounds: need at least 1, have 0"),
        (["--against", "vllm"], "--against: need one of accelerate, have 'vllm'"),
        (["--against", "accelerate", "--limit-by", "watchdog"], "--limit-by: need --memory-limit"),
    ],
)
def test_what_can_never_work_is_refused_before_anything_runs(
    arguments: list[str], says: str, measured: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*SMALL, *arguments) == 1
    assert says in capsys.readouterr().err
    assert measured == []


@pytest.mark.parametrize("arms", [[], ["--memory-limit", "2GB", "--limit-by", "watchdog"]])
def test_a_model_that_is_not_there_is_named(
    arms: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none")
    assert main(["bench", "throughput", missing, *SMALL, *arms]) == 1
    assert f"penstock: {missing}" in capsys.readouterr().err
