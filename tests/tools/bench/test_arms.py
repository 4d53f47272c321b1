"""The arms of a comparison: who runs when, with what, and how they are compared."""

import importlib.util
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models

import pipeline.tools.bench.accelerate_arm as accelerate_arm
import pipeline.tools.bench.arms as arms_module
from pipeline.api import BUNDLED, Model
from pipeline.errors import ConfigError
from pipeline.tools.bench.arm_program import ArmRun, command_of, serve
from pipeline.tools.bench.arms import ACCELERATE, OURS, Arms, agreement, median_rows
from pipeline.tools.bench.load import Load, LoadSettings
from pipeline.tools.bench.memory_limit import MemoryLimit, OverLimit

LIMIT = MemoryLimit(2 * 10**9, "watchdog")
SETTINGS = {"gpu_groups": 5, "device": "cpu", "dtype": "float32"}


def arms_of(folder: Path, load: Load, said: list[str] | None = None) -> Arms:
    return Arms(folder, SETTINGS, load, [1, 4], LIMIT, (said if said is not None else []).append)


def without(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    found = lambda name: None if name == module else find("json")  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", found)


@pytest.mark.parametrize("module", ["accelerate", "transformers"])
def test_a_missing_extra_is_named(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(module, monkeypatch)
    told = rf"--against accelerate: {module} is not installed: pip install 'accelerate>=1.10' 'transformers>=5'"
    with pytest.raises(ConfigError, match=told):
        arms_of(BUNDLED, Load(8, 8, 2)).check("accelerate")
    arms_of(BUNDLED, Load(8, 8, 2)).check(None)
    settings = LoadSettings("", "", [1], asdict(Load(1, 1, 1)), {})
    assert serve(accelerate_arm.run, LoadSettings, command_of("accelerate_arm", settings)[-1:]) == 1
    assert f"{module} is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("load", [Load(8, 9, 2), Load(8, 8, 2, arrivals_per_second=1.0)])
def test_what_no_static_batch_can_be_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    without("nothing", monkeypatch)
    with pytest.raises(ConfigError, match="a static batch needs prompts of one length that come at once"):
        arms_of(BUNDLED, load).check("accelerate")
    arms_of(BUNDLED, Load(8, 8, 2)).check("accelerate")
    quantised = arms_of(BUNDLED.with_name("bundled-int4"), Load(8, 8, 2))
    with pytest.raises(ConfigError, match="--against accelerate: needs a checkpoint that is not quantised, have /"):
        quantised.check("accelerate")
    with pytest.raises(ConfigError, match="--against: need one of accelerate, have 'vllm'"):
        arms_of(BUNDLED, Load(8, 8, 2)).check("vllm")


async def test_arms_take_turns_with_the_same_load_limit_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(BUNDLED, tmp_path / "model")
    ran: list[tuple[Sequence[str], MemoryLimit | None]] = []

    async def run_limited(
        command: Sequence[str], limit: MemoryLimit | None, folders: Sequence[Path]
    ) -> tuple[str, int]:
        ran.append((command, limit))
        model, offloaded = folders
        assert model == folder
        assert offloaded.parent == tmp_path, "on the disk of the model"
        assert offloaded.is_dir()
        rows = [{"requests": 1, "tokens_per_second": float(len(ran))}]
        return json.dumps(rows), 7

    monkeypatch.setattr(arms_module, "run_limited", run_limited)
    said: list[str] = []
    runs = await arms_of(folder, Load(8, 8, 2, seed=9), said).run("accelerate", 2)
    order = [(OURS, 0), (ACCELERATE, 0), (ACCELERATE, 1), (OURS, 1)]
    assert [(run.arm, run.round) for run in runs] == order
    assert said == [f"round {index + 1}/2: {arm}" for arm, index in order]
    assert {limit for _, limit in ran} == {LIMIT}
    assert [run.peak_bytes for run in runs] == [7] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "what was offloaded is gone"
    modules = ["throughput", "accelerate_arm", "accelerate_arm"]
    for module, requests, (command, _) in zip(modules, [[1, 4], [1], [4]], ran, strict=False):
        assert command[1:3] == ["-m", f"pipeline.tools.bench.{module}"]
        told = LoadSettings(**json.loads(command[-1]))
        assert (told.requests, Load(**told.load), told.options) == (requests, Load(8, 8, 2, seed=9), SETTINGS)
    assert median_rows(runs, OURS)[0]["tokens_per_second"] == pytest.approx(3.5)
    assert median_rows(runs, ACCELERATE)[0]["tokens_per_second"] == pytest.approx(3)


async def test_a_batch_that_needs_too_much_memory_is_a_row_without_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(BUNDLED, tmp_path / "model")

    async def run_limited(
        command: Sequence[str], limit: MemoryLimit | None, folders: Sequence[Path]
    ) -> tuple[str, int]:
        rows = [{"requests": count, "seconds": 2.0, "token_ids": []} for count in (1, 4)]
        if command[2].endswith("throughput"):
            return json.dumps(rows), 7
        if json.loads(command[-1])["requests"] == [4]:
            raise OverLimit("need at least 2 GB, have a limit of 1.8 GB")
        return json.dumps(rows[:1]), 8

    monkeypatch.setattr(arms_module, "run_limited", run_limited)
    said: list[str] = []
    runs = await arms_of(folder, Load(8, 8, 2), said).run("accelerate", 1)
    assert "need at least 2 GB, have a limit of 1.8 GB" in said
    small, large = median_rows(runs, ACCELERATE)
    assert small["seconds"] == 2
    assert large == {"requests": 4, "token_ids": []}
    assert runs[1].peak_bytes == 8


def test_medians_are_taken_figure_by_figure() -> None:
    rows: list[dict[str, Any]] = [
        {"a": a, "b": b, "none": None, "token_ids": [[a]]} for a, b in ((1, 9), (5, 2), (2, 4))
    ]
    runs = [ArmRun(OURS, index, 0, [row]) for index, row in enumerate(rows)]
    assert median_rows([*runs, ArmRun(ACCELERATE, 0, 0, [])], OURS) == [
        {"a": 2, "b": 4, "none": None, "token_ids": [[1]]}
    ]


def test_tokens_agree_up_to_the_first_difference() -> None:
    ours, theirs = {"token_ids": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}, {"token_ids": [[1, 2, 3], [4, 0, 6], [0, 8, 9]]}
    assert agreement(ours, theirs) == (1, 4)


async def test_the_other_arm_asks_for_the_same_tokens(tmp_path: Path) -> None:
    """Its batch through transformers gives, in fp32, what our requests give."""
    model = tiny_models.save_and_read("llama_gqa_llama3", tmp_path, shards=1, dtype=torch.float32)
    theirs = accelerate_arm.measure(model, Load(6, 6, 4, seed=5), 3)
    assert (theirs["requests"], theirs["passes"]) == (3, 4)
    assert theirs["tokens_per_pass"] == pytest.approx(3 * (6 + 3) / 4)
    assert theirs["tokens_per_second"] == pytest.approx(12 / theirs["seconds"])
    assert 0 < theirs["first_token_seconds"] < theirs["seconds"]
    async with Model.open(tmp_path, device="cpu") as ours:
        for prompt, token_ids in zip(Load(6, 6, 4, seed=5).prompts(3, 259), theirs["token_ids"], strict=True):
            output = await ours.generate(prompt, max_new_tokens=4, temperature=0.0, ignore_eos=True)
            assert list(output.token_ids) == token_ids
