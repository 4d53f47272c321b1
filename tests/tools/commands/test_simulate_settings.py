"""`penstock simulate`: that the options about the line reach the line."""

import argparse
import json
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import pipeline.tools.commands.simulate_policies as command
import pipeline.tools.simulation.sim_line as line
from actors.core.line import LineStatistics
from pipeline.cli import main
from pipeline.engine.policies import POLICIES
from pipeline.tools.commands.simulate import add_simulate
from pipeline.tools.simulation.sim_line import SimLine, Simulated, sim_line
from pipeline.tools.simulation.sim_line import simulate as run_simulation
from pipeline.tools.simulation.timings import LayerTimings

RATES = ("--disk-gbps", "6.5", "--h2d-gbps", "25", "--tflops", "60", "--batch-tokens", "4096")
TWO_HOPS = ("--disk-attn-ms", "100", "--disk-ffn-ms", "100", "--layers", "12")


def simulated(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    parser = argparse.ArgumentParser()
    add_simulate(parser.add_subparsers(required=True))
    options = parser.parse_args(["simulate", "--policy", "backpressure", *arguments, "--json"])
    options.command(options)
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[LayerTimings]:
    """The timings of every simulation."""
    seen: list[LayerTimings] = []

    def simulate(timings: LayerTimings, *arguments: Any, **settings: Any) -> Simulated:
        seen.append(timings)
        return run_simulation(timings, *arguments, **settings)

    monkeypatch.setattr(command, "simulate", simulate)
    return seen


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[LineStatistics]:
    """Every line that was simulated, before it ran."""
    made: list[LineStatistics] = []

    def make(*arguments: Any, **settings: Any) -> SimLine:
        sim = sim_line(*arguments, **settings)
        made.append(sim.line.statistics())
        return sim

    monkeypatch.setattr(line, "sim_line", make)
    return made


def test_a_model_has_as_many_layers_as_one_says(capsys: pytest.CaptureFixture[str], timed: list[LayerTimings]) -> None:
    whole = simulated(capsys, "--model", "llama-3-70b", *RATES)
    part = simulated(capsys, "--model", "llama-3-70b", "--layers", "8", *RATES)
    assert [timings.layers for timings in timed] == [80, 8]
    assert [len(timings.order) for timings in timed] == [160, 16]
    assert timed[1].ffn_disk == timed[0].ffn_disk
    assert part["total_ms"] < whole["total_ms"] / 9


def test_a_models_timings_take_the_other_options_too(
    capsys: pytest.CaptureFixture[str], timed: list[LayerTimings]
) -> None:
    more = ("--sync-ms", "2", "--kv-ms", "3", "--jitter", "0.1", "--seed", "4", "--layers", "2")
    simulated(capsys, "--model", "llama-3-70b", *RATES, *more)
    (timings,) = timed
    assert (timings.check_seconds, timings.kv_seconds) == (0.002, 0.003)
    assert (timings.jitter, timings.seed) == (0.1, 4)


def test_with_one_host_slot_reading_and_uploading_take_turns(
    capsys: pytest.CaptureFixture[str], lines: list[LineStatistics]
) -> None:
    one, two, as_many = (
        simulated(capsys, *TWO_HOPS, *more) for more in (["--host-groups", "1"], ["--host-groups", "2"], [])
    )
    assert [made.budgets["host"].capacity for made in lines] == [1, 2, 10]
    assert [made.budgets["device"].capacity for made in lines] == [10, 10, 10]
    assert one["ms_per_layer"] == pytest.approx(400), "100 to read and 100 to upload, twice"
    assert as_many["ms_per_layer"] == pytest.approx(200)
    assert as_many["total_ms"] <= two["total_ms"] < one["total_ms"]


def test_the_queue_size_is_that_of_every_queue(capsys: pytest.CaptureFixture[str], lines: list[LineStatistics]) -> None:
    for arguments in (["--queue", "3"], ["--queue", "1", *TWO_HOPS], [], ["--gpu-groups", "6"]):
        simulated(capsys, "--layers", "4", *arguments)
    capacities = [[channel.capacity for channel in made.channels.values()] for made in lines]
    assert capacities == [[3] * 4, [1] * 4, [10] * 4, [6] * 4]


def test_a_policy_of_the_users_is_a_row_like_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the table with other parameters, and an object of its own, which has no closed form."""

    class Nothing:
        name, triggered, waits, fallback_seconds, micro_batches = "nothing", True, "event", None, 1
        kv_ahead = True

        def fit(self, slots: object) -> "Nothing":
            return self

        def warmup(self) -> tuple[()]:
            return ()

        def at_start(self, half: object) -> tuple[()]:
            return ()

    own = SimpleNamespace(near=replace(POLICIES["stage2"], name="near", depth=1), Nothing=Nothing)
    monkeypatch.setitem(sys.modules, "own_policies", own)
    near, builtin = simulated(capsys, "--policy", "own_policies:near"), simulated(capsys, "--policy", "stage2")
    assert (near["policy"], near["depth_used"], builtin["depth_used"]) == ("near", 1, 4)
    assert main(["simulate", "--policy", "own_policies:Nothing", "--layers", "8"]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("own_policies:Nothing"))
    assert row.split()[1:4] == ["3.200", "400.0", "2.000"], "nothing is read ahead, and no formula"
    assert main(["simulate", "--policy", "own_policies:Nothing", "--depth", "2"]) == 1
    assert "--depth, --micro-batches: own_policies:Nothing says so itself" in capsys.readouterr().err
