"""`penstock tune` as people use it: what it advises, the line to paste, and the whole command on a small checkpoint."""

import argparse
import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from support.small_checkpoints import write_small_checkpoint

import pipeline.devices.cpu
import pipeline.engine.plan
import pipeline.generation.build
from actors.core.ports import Priority
from pipeline import Message, Slot, Stage
from pipeline.api import Model
from pipeline.config import Config
from pipeline.engine.policies import POLICIES, Policy, Want
from pipeline.errors import CheckpointError, ConfigError
from pipeline.reading.reading import Reading
from pipeline.tools.bench import read_rates
from pipeline.tools.bench.candidates import DEFAULT_READING, Candidate, ReadSizes, Samples
from pipeline.tools.bench.tune import QUEUES, ROUNDS, Finalist, Staying, TuneReport
from pipeline.tools.commands.tune import advice, effect, open_line, staying, tune


def one(gpu_groups: int, queue: int = 1) -> Candidate:
    return Candidate(gpu_groups=gpu_groups, host_groups=4, queue=queue, reading=DEFAULT_READING)


def report(by_budget: list[float], chosen: int, resources: dict[str, float], **changes: Any) -> TuneReport:
    times = {one(budget, queue): time for budget, time in enumerate(by_budget, 1) for queue in QUEUES}
    return dataclasses.replace(
        TuneReport(
            folder=Path("some where/it's"),
            settings={},
            groups_settings=["gpu_groups"],
            batch_tokens=1,
            most_groups=len(by_budget),
            rates={DEFAULT_READING: Samples((3e9,))},
            resources=resources,
            simulated=times,
            by_lanes=times,
            window_bytes={budget: budget * 10**8 for budget in range(1, 1 + len(by_budget))},
            finalists=(Finalist(one(chosen), by_budget[chosen - 1], (Samples((2.0,)),)),),
            staying=Staying(24, 24, Samples((2.0,))),
            chosen=one(chosen),
        ),
        **changes,
    )


def test_the_advice_says_what_binds_and_what_more_would_buy() -> None:
    resources = {"disk": 0.95, "compute": 0.4}
    text = advice(report([1.4, 1.1, 1.0, 1.0], 3, resources))
    assert text.startswith("The disk works for 0.950 s of a simulated pass of 1.000 s.")
    assert text.endswith("A larger budget would buy nothing: the disk binds from 3 groups on.")
    text = advice(report([1.4, 1.1, 1.0, 1.0], 2, resources))
    assert "a budget of 3 groups (300 MB) would be 10% faster, which the real runs do not show" in text
    text = advice(report([1.0, 1.0], 1, {"disk": 0.5, "compute": 0.6}))
    assert text.startswith("Nothing binds alone: computing works for 0.600 s")
    assert text.endswith("from 1 group on a pass gets no shorter.")
    alone = report([1.0], 1, resources)
    assert advice(alone).endswith("No budget larger than 1 group was tried.")


def test_an_effect_is_told_from_what_running_the_same_settings_again_changes() -> None:
    slow = Finalist(one(1), 2.0, (Samples((2.0,)), Samples((2.2,))))
    fast = Finalist(one(4), 1.0, (Samples((1.0,)), Samples((1.0,))))
    told = effect(report([2.5, 1.0], 2, {}, finalists=(slow, fast)))
    assert told == (
        "The settings have an effect: the slowest is 150% slower than the fastest in simulation, and 110% for real; "
        "the same ones, run again, were up to 10% slower."
    )
    noisy = dataclasses.replace(fast, rounds=(Samples((0.9,)), Samples((1.9,))))
    told = effect(report([2.5, 1.0], 2, {}, finalists=(slow, noisy)))
    assert told.startswith("The settings have no effect that can be told from noise")
    assert "50% for real, but the same ones, run again, were up to 111% slower. Tune again while" in told


def test_what_stays_on_defaults_is_held_against_what_was_tuned() -> None:
    tuned = report([1.0], 1, {})
    assert "without residency=False all of them move, too" in staying(tuned)
    some = staying(dataclasses.replace(tuned, staying=Staying(24, 6, Samples((1.0,)))))
    assert "By default 18 of them stay in memory, and a pass takes 1.000 s, 0.50 x the fastest" in some
    assert some.endswith("leave residency=False out to have that.")
    whole = staying(dataclasses.replace(tuned, staying=Staying(24, 0, Samples((1.0,)))))
    assert "By default all of them stay" in whole
    assert whole.endswith("and then the other settings have no effect.")


def test_the_line_to_paste_is_python() -> None:
    line = open_line(
        report([1.0], 1, {"disk": 1.0}, settings={"device": "cpu-copy"}, groups_settings=["host_groups", "gpu_groups"])
    )
    settings = called_with(line)
    assert settings.pop("path") == "some where/it's"
    assert settings.pop("device") == "cpu-copy"
    assert settings == one(1).settings
    assert f"chunk_bytes={Reading().chunk_bytes >> 20} << 20" in line
    odd = dataclasses.replace(report([1.0], 1, {}), chosen=dataclasses.replace(one(1), reading=ReadSizes(1, 12288)))
    assert called_with(open_line(odd))["chunk_bytes"] == 12288
    own = {"policy": dataclasses.replace(POLICIES["stage2"], depth=1), "insert": {"disk_reader": [OwnStage()]}}
    settings = called_with(open_line(report([1.0], 1, {}, settings=own)))
    assert settings["policy"] == own["policy"]
    assert [type(stage) for stage in settings["insert"]["disk_reader"]] == [OwnStage]


class OwnStage(Stage):
    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        return message


def called_with(line: str) -> dict[str, Any]:
    class Recorder:
        @staticmethod
        def open(path: str, **settings: Any) -> dict[str, Any]:
            return {"path": path, **settings}

    names = {one.__name__: one for one in (Policy, Want, Priority, OwnStage)}
    settings: dict[str, Any] = eval(line, {"Model": Recorder, **names})
    return settings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "small"
    write_small_checkpoint(folder, "llama-3-8b")
    return folder


@pytest.fixture
def _short_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_rates, "ROUNDS", 2)
    monkeypatch.setattr(read_rates, "SWEEP_SECONDS", 0.01)


def options(model: Path, **changes: Any) -> argparse.Namespace:
    usual = {"batch_tokens": 1, "most_groups": 5, "passes": 2, "settings": {"device": "cpu"}, "json": False}
    return argparse.Namespace(model=model, **(usual | changes))


@pytest.mark.usefixtures("everything_moves")
@pytest.mark.usefixtures("_short_sweeps")
async def test_what_does_not_fit_is_left_out_and_the_printed_line_opens_the_model(
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = pipeline.generation.build.build(checkpoint, Config(device="cpu", gpu_groups=3))
    have = sum(holding.nbytes for holding in runtime.plan.holdings if holding.knob or "kernels" in holding.holder)
    await runtime.aclose()
    monkeypatch.setattr(pipeline.engine.plan, "resident_bytes", lambda: 0)
    monkeypatch.setattr(pipeline.devices.cpu, "available_host_bytes", lambda: have)
    with caplog.at_level(logging.WARNING, "penstock"):
        await tune(options(checkpoint, batch_tokens=3))
    printed = capsys.readouterr()
    assert printed.err.startswith("opening the model")
    assert "8 lanes" in printed.out
    assert printed.out.count("does not fit into memory") == 2
    assert "default" not in printed.out.split("for real")[1].split("\n\n")[0]
    told = "have an effect|have no effect that can be told from noise"
    assert re.search(
        rf"The settings ({told}): the slowest is \d+% slower .* run again, were up to \d+% slower\.", printed.out
    )
    line = printed.out.splitlines()[-1]
    settings = called_with(line)
    assert settings["gpu_groups"] <= 3
    assert settings["residency"] is False
    assert "host_groups" not in settings
    assert [record.message for record in caplog.records if "no tokenizer" in record.message]
    async with eval(line, {"Model": Model}) as model:
        assert model.statistics().moving_groups == len(model.runtime.catalog.order), "as they did in the runs"
        assert len((await model.generate([1, 2, 3], max_new_tokens=2, ignore_eos=True)).token_ids) == 2


@pytest.mark.usefixtures("_short_sweeps")
async def test_copying_devices_also_try_as_many_host_groups(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await tune(options(checkpoint, settings={"device": "cpu-copy"}, json=True))
    found = json.loads(capsys.readouterr().out)
    tried = {(row["gpu_groups"], row["host_groups"]) for row in found["simulated"]}
    assert tried == {(groups, 4) for groups in range(1, 6)} | {(groups, groups) for groups in range(1, 6)}
    assert len(found["simulated"]) == len(tried) * len(QUEUES)
    assert set(found["resource_seconds"]) == {"disk", "H2D", "compute"}
    rates = {(row["reader_lanes"], row["chunk_bytes"]): row for row in found["read_rates"]}
    assert set(rates) == set(read_rates.READINGS)
    assert all(len(row["values"]) == 2 and row["median"] > 0 for row in rates.values())
    assert all(len(row["measured"]["values"]) == ROUNDS * 2 for row in found["finalists"])
    assert {(row["gpu_groups"], row["reader_lanes"]) for row in found["by_lanes"]} == {
        (groups, lanes) for groups in range(1, 6) for lanes in (1, 2, 4, 8)
    }
    assert min((row["gpu_groups"], row["queue"]) for row in found["finalists"]) == (1, 1), "the effect is seen for real"
    assert min(found["effect"], found["noise"]) > 0
    assert found["staying"]["moving_groups"] == 0
    assert found["staying"]["groups"] > 0
    assert any((row["gpu_groups"], row["queue"]) == (4, 4) for row in found["finalists"])
    windows = [found["window_bytes"][str(groups)] for groups in range(1, 6)]
    assert windows == sorted(windows)
    settings = called_with(found["open"])
    assert settings.pop("device") == "cpu-copy"
    assert settings.pop("path") == str(checkpoint)
    assert settings == found["chosen"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_tokens": 0}, "--batch-tokens: need at least 1, have 0"),
        ({"most_groups": 65}, "--most-groups: need at least 1 and at most 64, have 65"),
        ({"passes": 0}, "--passes: need at least 1, have 0"),
        ({"settings": {"device": "xpu"}}, "device: unknown value"),
        ({"settings": {"device": "cpu", "context_tokens": 3}}, "4 positions|5 positions, have 3"),
        ({"batch_tokens": 10_000}, "2 measured and 2 other passes of 10000 tokens need 40001 positions"),
    ],
)
async def test_bad_options_are_errors_that_name_them(checkpoint: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        await tune(options(checkpoint, **changes))


async def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        await tune(options(tmp_path / "nowhere"))


@pytest.mark.usefixtures("_short_sweeps")
async def test_memory_for_nothing_is_an_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.devices.cpu, "available_host_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match="host memory: need"):
        await tune(options(checkpoint))
