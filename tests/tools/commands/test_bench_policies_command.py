"""`penstock bench policies` as people use it: its table, its JSON, its traces, what it refuses."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.columns import COLUMNS

import pipeline.tools.commands.bench_policies as command
from actors.core.ports import PrefetchPolicy
from pipeline.api import BUNDLED
from pipeline.cli import main
from pipeline.engine.policies import POLICIES
from pipeline.tools.bench.policy_runs import CHAINED_TITLE, PolicyBench, PolicyReport
from pipeline.tools.trace.overlap import Overlap
from pipeline.tools.trace.perfetto import read_trace
from pipeline.tools.trace.recording import COMPUTE, DISK

MORE = ["simulated", "error", "passes", "batch_tokens", "token_ids", "logprob_difference", "pass_seconds"]
SMALL = ("--device", "cpu", "--passes", "2", "--batch-tokens", "16")


def bench(*arguments: object) -> int:
    return main(["bench", "policies", str(BUNDLED), *map(str, arguments)])


def overlap(policy: str, total_ms: float) -> Overlap:
    numbers: dict[str, Any] = dict.fromkeys(COLUMNS[1:], 0.0)
    shares = {"attn_window": 0.5, "ffn_window": 0.25}
    numbers |= {"groups_requested": shares, "link_use": shares | {"total": 0.75}, "groups_on_device_peak": 3}
    return Overlap(policy=policy, **(numbers | {"total_ms": total_ms, "depth_used": 1}))


def report(policy: str, measured: float, simulated: float, difference: float, spread: float = 0.0) -> PolicyReport:
    passes = tuple(measured / 1000 * (1.0 + part) for part in (-spread, -spread, spread, spread))
    return PolicyReport(overlap(policy, measured), overlap(policy, simulated), 2, 16, (5, 6), difference, passes)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PolicyBench, Sequence[str]]]:
    """What the command asks for, answered with figures made up, so that nothing is run."""
    asked: list[tuple[PolicyBench, Sequence[str]]] = []
    chained = report("current", 400.0, 500.0, 0.031)

    async def run(bench: PolicyBench, policies: Mapping[str, PrefetchPolicy]) -> list[PolicyReport]:
        asked.append((bench, list(policies)))
        first, second = report("history", 1000.0, 900.0, 0.0), report("current", 2000.0, 2000.0, 0.012)
        return [first, replace(second, chained=chained)]

    monkeypatch.setattr(PolicyBench, "run", run)
    return asked


@pytest.mark.usefixtures("runs")
def test_the_table_has_the_simulation_and_its_error_beside_the_measured_total(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench(*SMALL) == 0
    table, legend, effect, said = capsys.readouterr().out.rstrip().split("\n\n")
    names, units, *rows = table.splitlines()
    assert "asks at: groups that are asked for" in legend
    assert names.split()[:7] == ["policy", "total", "per", "layer", "simulated", "error", "spread"]
    assert units.split()[:5] == ["s", "ms", "s", "%", "%"]
    cells = {row.split("  ")[0]: row.removeprefix(row.split("  ")[0]).split() for row in rows}
    assert list(cells) == ["history", "current", CHAINED_TITLE]
    assert [row[0] for row in cells.values()] == ["1.000", "2.000", "0.400"]
    assert [row[2] for row in cells.values()] == ["0.900", "2.000", "0.500"]
    assert [row[3] for row in cells.values()] == ["-10.0", "+0.0", "+25.0"]
    assert effect == "a pass of current took 400.0% longer than of current, chained, more than the 0.0% of both spreads"
    assert "2 passes of 16 tokens each" in said
    assert "the same tokens came out of all" in said
    assert "at most 0.031 apart" in said, "the chained row counts too"


def test_policies_that_differ_less_than_their_passes_prove_nothing() -> None:
    slow, fast = report("history", 1100.0, 900.0, 0.0, spread=0.2), report("stage1", 1000.0, 900.0, 0.0)
    told = "a pass of history took 10.0% longer than of stage1, which proves nothing beside the 20.0% of both spreads\n"
    assert told in command._table([slow, fast])
    hesitates = replace(fast, measured=overlap("current", 9000.0), pass_seconds=(1.0, 1.0, 1.0, 1.0, 6.0))
    assert "took 0.0% longer" in command._table([fast, hesitates]), "one slow pass is no policy's"
    assert "both spreads" not in command._table([slow]), "there is nothing to compare"
    few = replace(fast, pass_seconds=(1.0,))
    assert "too few passes to tell how policies differ from noise: raise --passes to 3" in command._table([slow, few])


def test_without_names_all_seven_run_with_the_settings_given(
    runs: list[tuple[PolicyBench, Sequence[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*SMALL) == 0
    assert bench(*SMALL, "--gpu-groups", "6", "--dtype", "float32", "--policies", "stage1", "history", "stage1") == 0
    (first, all_names), (second, some_names) = runs
    assert list(all_names) == list(POLICIES)
    assert list(some_names) == ["stage1", "history"], "each once"
    assert (first.folder, first.passes, first.batch_tokens) == (BUNDLED, 2, 16)
    common = {"device": "cpu", "residency": False}
    assert first.settings == {"gpu_groups": 10, "host_groups": 10, **common}
    assert second.settings == {"gpu_groups": 6, "host_groups": 6, "dtype": "float32", **common}


def test_without_tokens_per_pass_those_that_balance_are_found(
    runs: list[tuple[PolicyBench, Sequence[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def balanced(folder: Path, settings: dict[str, Any], passes: int, progress: object) -> int:
        asked.append((folder, settings["device"], passes))
        return 21

    monkeypatch.setattr(command, "measured_balance", balanced)
    assert bench("--device", "cpu") == 0
    assert bench(*SMALL) == 0
    assert asked == [(BUNDLED, "cpu", 8)]
    assert [run.batch_tokens for run, _ in runs] == [21, 16]


def test_json_and_a_trace_of_each_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command on the bundled model, with a policy of the user's."""
    path, mine = tmp_path / "run.json.gz", "own_policies:mine"
    monkeypatch.setitem(sys.modules, "own_policies", SimpleNamespace(mine=replace(POLICIES["stage1"], name="mine")))
    assert bench(*SMALL, "--json", "--trace", path, "--policies", "history", "current", mine) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert [row["policy"] for row in rows] == ["history", "current", mine]
    for row in (*rows, rows[1]["chained"]):
        assert list(row) == [*COLUMNS, *MORE, *(["chained"] if row is rows[1] else [])]
        assert list(row["simulated"]) == COLUMNS
        assert (row["passes"], row["batch_tokens"], len(row["token_ids"])) == (2, 16, 2)
        assert row["token_ids"] == rows[0]["token_ids"]
        assert row["error"] == pytest.approx(row["simulated"]["total_ms"] / row["total_ms"] - 1, abs=1e-6)
    names = {"history": "history", "current": "current", "current-chained": "current", "own_policies-mine": "mine"}
    assert {file.name for file in tmp_path.iterdir()} == {f"run.{name}.json.gz" for name in names}
    for name, policy in names.items():
        recording = read_trace(tmp_path / f"run.{name}.json.gz")
        assert f"wrote {tmp_path / f'run.{name}.json.gz'}" in printed.err
        assert recording.configuration["command"] == "bench policies"
        assert recording.configuration["policy"] == policy
        assert recording.configuration["gpu_groups"] == 10
        work = [span for span in recording.spans if span.what == "work"]
        assert {DISK, COMPUTE} <= {span.actor for span in work}


def test_the_trace_of_a_single_policy_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    assert bench(*SMALL, "--trace", path, "--policies", "backpressure") == 0
    assert list(tmp_path.iterdir()) == [path]
    assert read_trace(path).configuration["policy"] == "backpressure"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--passes", "0"], "--passes: need at least 1, have 0"),
        (["--batch-tokens", "0"], "--batch-tokens: need at least 1, have 0"),
        (["--policies", "history", "histry"], "did you mean 'history'"),
        (["--policies", "own:"], "need MODULE:NAME, as in my_module:MyClass, have 'own:'"),
        (["--gpu-groups", "0"], "gpu_groups"),
        (["--device", "tpu"], "device: unknown value"),
    ],
)
def test_what_can_never_work_is_refused_before_anything_runs(
    arguments: list[str],
    says: str,
    runs: list[tuple[PolicyBench, Sequence[str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def balanced(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr(command, "measured_balance", balanced)
    assert bench(*arguments) == 1
    assert says in capsys.readouterr().err
    assert runs == []
