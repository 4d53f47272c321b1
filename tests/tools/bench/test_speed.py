"""Arms that decode token by token: ours with and without features, in turn with others, and what is made of it."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.tools.bench.speed as speed
from pipeline.api import BUNDLED
from pipeline.errors import ConfigError
from pipeline.tools.bench import hugging_face_arm, our_arm
from pipeline.tools.bench.arm_program import ArmRun, command_of
from pipeline.tools.bench.memory_limit import MemoryLimit, OverLimit
from pipeline.tools.bench.pass_arm import WARM_UP, Passes, PassSettings, serve_passes
from pipeline.tools.bench.speed import OURS, WITHOUT, SpeedBench, arms_of, results

PASSES = 4


def settings(arm: str, **options: Any) -> PassSettings:
    return PassSettings(
        folder=str(BUNDLED), offload_folder="", passes=PASSES, options={"arm": arm, "device": "cpu", **options}
    )


@pytest.fixture(scope="module")
def ours() -> Passes:
    return our_arm.run(settings(OURS))


@pytest.mark.usefixtures("everything_moves")
@pytest.mark.parametrize("arm", WITHOUT)
@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
def test_every_arm_of_ours_says_the_same(arm: str, device: str, ours: Passes) -> None:
    passes = our_arm.run(settings(arm, **{**WITHOUT[arm], "device": device}))
    assert passes.token_ids == ours.token_ids
    assert len(passes.token_ids) == WARM_UP + PASSES
    assert passes.moving_groups == 24
    assert len(passes.pass_seconds) == PASSES
    assert all(seconds > 0 for seconds in passes.pass_seconds)
    if arm == our_arm.SEQUENTIAL:
        assert passes.floors == {}
    else:
        assert {name for name, seconds in passes.floors.items() if max(seconds) > 0} == {
            "read", "compute", *(["upload"] if device == "cpu-copy" else []),
        }  # fmt: skip


def test_an_arm_is_a_program_that_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_passes(our_arm.run, command_of("our_arm", settings(OURS, residency=False))[-1:]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["arm"] == OURS
    assert len(printed["pass_seconds"]) == PASSES
    assert serve_passes(our_arm.run, command_of("our_arm", settings(OURS, gpu_groups=0))[-1:]) == 1
    assert "gpu_groups" in capsys.readouterr().err


class Doubling(torch.nn.Module):
    """Stands in for a model of transformers: the next token is twice the last; it remembers how often it was asked."""

    def forward(self, input_ids: torch.Tensor, past_key_values: list[int] | None, use_cache: bool) -> Any:
        cache = [*(past_key_values or []), int(input_ids)]
        logits = torch.zeros(1, 1, 1000)
        logits[0, -1, 2 * sum(cache[-1:]) % 1000] = 1.0
        return type("Output", (), {"logits": logits, "past_key_values": cache})()


def test_other_programs_are_asked_for_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Path, Path, str]] = []

    def open_offloaded(*arguments: Any) -> Doubling:
        opened.append(arguments)
        return Doubling()

    monkeypatch.setattr(hugging_face_arm, "check_installed", lambda: None)
    monkeypatch.setattr(hugging_face_arm, "open_offloaded", open_offloaded)
    passes = hugging_face_arm.run(
        PassSettings(folder="model", offload_folder="offloaded", passes=2, options={"arm": "accelerate"})
    )
    assert passes.token_ids == [2, 4, 8, 16, 32]
    assert len(passes.pass_seconds) == 2
    assert opened == [(Path("model"), Path("offloaded"), "auto")]


async def scripted(
    monkeypatch: pytest.MonkeyPatch, names: Sequence[str], rounds: int, over: str = ""
) -> tuple[list[ArmRun], list[tuple[str, Any]]]:
    started: list[tuple[str, Any]] = []

    async def run_limited(command: Sequence[str], limit: Any, folders: Any) -> tuple[str, int]:
        asked = json.loads(command[-1])
        name = asked["options"]["arm"]
        started.append((name, limit))
        if name == over and limit is not None:
            raise OverLimit("too much")
        seconds = [len(started) + index / 10 for index in range(asked["passes"])]
        floors = {"read": [1.0], "upload": [0.0], "compute": [0.5]} if name in WITHOUT else {}
        row = {"arm": name, "pass_seconds": seconds, "read_bytes_per_pass": 5.0, "token_ids": [1, 2], "floors": floors}
        return json.dumps(row), 7

    monkeypatch.setattr(speed, "run_limited", run_limited)
    bench = SpeedBench(BUNDLED, {"device": "cpu"}, 3, MemoryLimit(10**9, "watchdog"), lambda text: None)
    return await bench.run(names, rounds), started


async def test_arms_take_turns_and_what_holds_all_weights_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, started = await scripted(monkeypatch, [OURS, "llama.cpp", "transformers"], 2)
    limit = MemoryLimit(10**9, "watchdog")
    assert started == [
        ("llama.cpp", None),  # writes its weights before anything is measured
        (OURS, limit), ("llama.cpp", limit), ("transformers", None),
        ("transformers", None), ("llama.cpp", limit), (OURS, limit),
    ]  # fmt: skip
    first, *_ = results(runs)
    assert first.arm == OURS
    assert len(first.pass_seconds) == 6
    assert first.ratios == pytest.approx((2.1, 7.1)), "each round by its own floor"
    assert first.floors == {"read": 1.0, "upload": 0.0, "compute": 0.5}


async def test_an_arm_over_the_limit_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, _ = await scripted(monkeypatch, [OURS, "accelerate"], 2, over="accelerate")
    _, accelerate = results(runs)
    assert accelerate.pass_seconds == ()


def test_an_arm_that_turns_off_what_is_off_already_is_left_out() -> None:
    assert arms_of({}) == list(WITHOUT)
    assert arms_of({"residency": False, "gpu_groups": 1}) == [
        OURS, "through the page cache", "by aiofiles", our_arm.SEQUENTIAL,
    ]  # fmt: skip


def test_an_arm_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--against: need some of .*llama\.cpp.*, have 'vllm'"):
        SpeedBench(BUNDLED, {}, 3, None, lambda text: None).check(["vllm"])


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"llama_cpp is not installed: pip install 'gguf>=0\.17' 'llama-cpp-python"):
        SpeedBench(BUNDLED, {}, 3, None, lambda text: None).check(["llama.cpp"])
