"""`penstock simulate`, as the command line runs it."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.columns import COLUMNS

from pipeline.engine.policies import POLICIES
from pipeline.errors import ConfigError
from pipeline.tools.commands.simulate import add_simulate

RATES = ("--disk-gbps", "6.5", "--h2d-gbps", "25", "--tflops", "60", "--batch-tokens", "4096")


def simulate(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_simulate(parser.add_subparsers(required=True))
    options = parser.parse_args(["simulate", *arguments])
    options.command(options)


def simulated(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    simulate(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


def test_all_seven_with_the_figures_of_the_analysis(capsys: pytest.CaptureFixture[str]) -> None:
    rows = simulated(capsys, "--all")
    assert [row["policy"] for row in rows] == list(POLICIES)
    for row in rows:
        assert list(row) == [*COLUMNS, "chained"] if row["policy"] == "current" else COLUMNS
    per_layer = [row["ms_per_layer"] for row in rows]
    assert per_layer == pytest.approx([210, 300, 300, 210, 200, 200, 200], rel=0.005)
    assert rows == simulated(capsys)


def test_current_is_measured_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    row = simulated(capsys, "--policy", "current", "--layers", "8")
    assert list(row) == [*COLUMNS, "chained"]
    assert list(row["chained"]) == COLUMNS
    assert row["chained"]["policy"] == "current"


def test_one_policy_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    row = simulated(capsys, "--policy", "stage1", "--gpu-groups", "4", "--sync-ms", "2")
    assert list(row) == COLUMNS
    assert (row["policy"], row["depth_used"], row["host_blocked_ms"]) == ("stage1", 1, 2)
    assert row["ms_per_layer"] == pytest.approx(204)


@pytest.mark.parametrize(
    ("arguments", "per_layer_ms"),
    [
        (["--attn-ms", "10", "--ffn-ms", "20", "--attn-io-ms", "30", "--ffn-io-ms", "40"], 70),
        (["--disk-attn-ms", "150", "--disk-ffn-ms", "160"], 310),
        (["--kv-ms", "400"], 400),
        (["--micro-batches", "2", "--attn-io-ms", "5", "--ffn-io-ms", "5"], 120),
        (["--micro-batches", "1", "--attn-io-ms", "5", "--ffn-io-ms", "5"], 200),
        (["--queue", "1", "--gpu-groups", "1"], 400),
        (["--disk-attn-ms", "1", "--disk-ffn-ms", "1", "--host-groups", "2", "--passes", "3"], 200),
    ],
)
def test_options_reach_the_line(capsys: pytest.CaptureFixture[str], arguments: list[str], per_layer_ms: float) -> None:
    row = simulated(capsys, "--policy", "backpressure", "--layers", "40", *arguments)
    assert row["ms_per_layer"] == pytest.approx(per_layer_ms, rel=0.001)


def test_depth_belongs_to_the_policies_that_have_one(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["policy"]: row for row in simulated(capsys, "--depth", "2", "--layers", "12")}
    assert list(rows["stage2"]["groups_requested"].values()) == [3, 2]
    assert list(rows["history1"]["groups_requested"].values()) == [2, 2]
    assert list(rows["history"]["groups_requested"].values()) == [0, 1]


def test_jitter_repeats_itself_by_seed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--policy", "stage2", "--layers", "12", "--jitter", "0.3")
    first, again, other = (simulated(capsys, *arguments, "--seed", seed)["total_ms"] for seed in ("1", "1", "2"))
    assert first == again != other


def test_a_models_timings(capsys: pytest.CaptureFixture[str]) -> None:
    row = simulated(capsys, "--policy", "backpressure", "--model", "llama-3-70b", *RATES)
    assert row["ms_per_layer"] == pytest.approx(2 * (150.995e6 + 704.643e6) / 6.5e9 * 1000, rel=0.001)


def test_the_table_has_a_line_for_every_row_and_the_formula_beside(capsys: pytest.CaptureFixture[str]) -> None:
    simulate("--sync-ms", "10")
    table, legend = capsys.readouterr().out.split("\n\n")
    names, units, *rows = table.splitlines()
    assert "asks at: groups that are asked for" in legend
    assert names.split()[:3] == ["policy", "total", "per"]
    assert "ms" in units
    assert len(rows) == len(POLICIES) + 1
    assert len({len(row) for row in rows}) == 1, "aligned"
    cells = {row.split("  ")[0]: row.split() for row in rows}
    assert cells["stage1"][2:4] == ["220.0", "220.0"]
    assert cells["current, chained"][2:5] == ["24.100", "300.0", "300.0"]


def test_the_trace_of_one_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.json"
    simulate("--policy", "stage3", "--layers", "4", "--trace", str(path))
    trace = json.loads(path.read_text())
    assert len(trace["traceEvents"]) > 4 * 2 * 2
    assert json.dumps(trace).count("stage3") >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "0"], "--layers: need a whole number from 1 to 65536, have 0"),
        (["--layers", "40000", "--passes", "2"], "at most 50000 over all passes and micro-batches, have 40000 x"),
        (["--layers", "100", "--micro-batches", "501"], "micro-batches, have 100 x 1 x 501"),
        (["--layers", "4", "--ffn-ms", "4.5e9"], "timings: need at most 1e+07 s in all, have 4.5e+06 s per layer"),
        (["--gpu-groups", "-1"], "--gpu-groups: need a whole number from 1 to 65536, have -1"),
        (["--attn-ms", "-1"], "--attn-ms: need a finite number from 0, have -1.0"),
        (["--kv-ms", "nan"], "--kv-ms: need a finite number from 0, have nan"),
        (["--jitter", "inf"], "--jitter: need a finite number from 0, have inf"),
        (["--attn-ms", "0", "--ffn-ms", "0"], "--attn-ms, --ffn-ms: need one above 0"),
        (["--policy", "histry"], "policy: unknown policy 'histry'; did you mean 'history'?"),
        (["--policy", "stage2", "--micro-batches", "2"], "--micro-batches: policy stage2 does not chain"),
        (["--policy", "history", "--depth", "2"], "--depth: policy history asks a fixed distance ahead"),
        (["--trace", "out.json"], "--trace: need one policy to write down, have all; name it with --policy"),
        (["--model", "llama-3-70b", "--attn-ms", "1"], "--attn-ms: --model derives the timings"),
        (["--model", "llama-3-70b", "--tflops", "1"], "--model: need --disk-gbps, --h2d-gbps, --batch-tokens too"),
        (["--model", "llama-3-70b", *RATES, "--tflops", "0"], "--tflops: need a finite number above 0, have 0.0"),
        (["--model", "lama-3-70b", *RATES], "did you mean 'llama-3-70b'?"),
        (["--tflops", "1"], "--tflops: is for --model, which is missing"),
    ],
)
def test_what_can_never_work_is_refused_by_the_name_of_its_option(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        simulate(*arguments)
    assert message in str(caught.value)


def test_one_policy_or_all() -> None:
    with pytest.raises(SystemExit):
        simulate("--all", "--policy", "stage1")


def test_the_parser_needs_nothing_that_takes_time_to_import() -> None:
    code = (
        "import argparse, sys, pipeline.tools.commands.simulate as one\n"
        "one.add_simulate(argparse.ArgumentParser().add_subparsers())\n"
        "print([name for name in ('torch', 'asyncio', 'pipeline.engine.policies') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
