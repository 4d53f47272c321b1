"""Arms that decode token by token: ours with and without features, in turn with others, and what is made of it."""

import importlib.util
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models

import pipeline.tools.bench.speed as speed
from pipeline.api import BUNDLED
from pipeline.devices.cpu import CpuDevice
from pipeline.engine.residency import NOTHING_STAYS
from pipeline.errors import ConfigError
from pipeline.tools.bench import device_floors, graph_arm, hugging_face_arm, our_arm
from pipeline.tools.bench.arm_program import ArmRun, command_of
from pipeline.tools.bench.floors import Floors, apart
from pipeline.tools.bench.memory_limit import MemoryLimit, OverLimit, ProgramFailed
from pipeline.tools.bench.pass_arm import WARM_UP, ArmPasses, PassSettings, Scenario, serve_passes
from pipeline.tools.bench.speed import ELSEWHERE, FROM_HOST, OURS, WITHOUT, SpeedBench, arms_of
from pipeline.tools.bench.speed_results import results
from pipeline.tools.bench.steady_passes import room_for

PASSES = 4
ONE = Scenario(passes=PASSES)
SCENARIOS = (
    ONE,
    Scenario(requests=3, prompt_tokens=7, passes=PASSES),
    Scenario(prompt_tokens=40, passes=2, first_token=True),
)
DRAWN = Scenario(requests=3, prompt_tokens=7, passes=PASSES, sampled=True)


def settings(arm: str, folder: Path = BUNDLED, scenarios: Sequence[Scenario] = (ONE,), **options: Any) -> PassSettings:
    asked = [asdict(one) for one in scenarios]
    device = options.pop("device", "cpu")
    return PassSettings(folder=str(folder), offload_folder="", arm=arm, scenarios=asked, device=device, options=options)


@pytest.fixture(scope="module")
def ours() -> ArmPasses:
    return our_arm.run(settings(OURS))[0]


@pytest.mark.usefixtures("everything_moves")
@pytest.mark.parametrize("arm", [arm for arm in WITHOUT if arm != FROM_HOST])
@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
def test_every_arm_of_ours_says_the_same(arm: str, device: str, ours: ArmPasses) -> None:
    (passes,) = our_arm.run(settings(arm, **{**WITHOUT[arm], "device": device}))
    assert passes.token_ids == ours.token_ids
    assert len(passes.token_ids[0]) == WARM_UP + PASSES
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
    (printed,) = json.loads(capsys.readouterr().out)
    assert printed["scenario"] == "1 greedy"
    assert len(printed["pass_seconds"]) == PASSES
    assert serve_passes(our_arm.run, command_of("our_arm", settings(OURS, gpu_groups=0))[-1:]) == 1
    assert "gpu_groups" in capsys.readouterr().err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an odd number of layers: the last one and the first of the next pass share a slot of the ring."""
    folder = tmp_path_factory.mktemp("speed") / "model"
    tiny_models.save("llama_gqa_llama3", folder, layers=5)
    return folder


@pytest.fixture(scope="module")
def answers(checkpoint: Path) -> list[ArmPasses]:
    return our_arm.run(settings(OURS, checkpoint, (*SCENARIOS, DRAWN)))


@pytest.mark.parametrize(
    ("run", "arm", "does"),
    [
        (hugging_face_arm.run, "transformers", 3),
        (hugging_face_arm.run, "ring", 3),
        (graph_arm.run, "graphs", 2),
    ],
)  # fmt: skip
def test_other_arms_give_the_same_tokens(
    run: Callable[[PassSettings], list[ArmPasses]], arm: str, does: int, checkpoint: Path, answers: list[ArmPasses]
) -> None:
    measured = run(settings(arm, checkpoint, SCENARIOS[:does]))
    assert [one.token_ids for one in measured] == [one.token_ids for one in answers[:does]]
    assert [len(one.pass_seconds) for one in measured] == [PASSES, PASSES, 2][:does]
    assert [len(one.token_ids) for one in measured] == [1, 3, 1][:does]


def test_drawn_tokens_are_not_the_most_likely_ones(checkpoint: Path, answers: list[ArmPasses]) -> None:
    """Another program draws others; which ones depends on the seed alone."""
    torch.manual_seed(0)
    (theirs,) = hugging_face_arm.run(settings("transformers", checkpoint, (DRAWN,)))
    for drawn in (theirs, answers[3]):
        assert drawn.token_ids != answers[1].token_ids
        assert [len(one) for one in drawn.token_ids] == [WARM_UP + PASSES] * 3


def test_the_ring_fills_a_slot_only_behind_the_layer_that_was_computed_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Event:
        def __init__(self) -> None:
            self.after = ""

        def record(self, stream: Any) -> None:
            self.after = order[-1]

    class Stream:
        def wait_event(self, event: Event) -> None:
            order.append(f"waits for {event.after}" if event.after else "waits for nothing")

    class Layer(torch.nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.weight, self.index = torch.nn.Parameter(torch.full((3,), float(index))), index

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            order.append(f"computes {self.index}")
            return x + self.weight

    monkeypatch.setattr(torch.cpu, "Event", Event)
    monkeypatch.setattr(torch.cpu, "Stream", Stream)
    monkeypatch.setattr(torch.cpu, "current_stream", Stream)
    from pipeline.tools.bench.ring import stream_through_ring

    layers = torch.nn.ModuleList(Layer(index) for index in range(3))
    stream_through_ring(layers, torch.device("cpu"))
    x = torch.zeros(3)
    for _ in range(2):
        for layer in layers:
            x = layer(x)
    assert x.tolist() == [6.0] * 3
    fills = [one for one in order if one.startswith("waits for computes")]
    assert fills == [f"waits for computes {index}" for index in (0, 2, 1, 0, 2, 1)]


def test_another_tree_answers_in_a_program_of_its_own(
    checkpoint: Path, answers: list[ArmPasses], tmp_path: Path
) -> None:
    bench = SpeedBench(
        checkpoint, {"device": "cpu"}, SCENARIOS, None, lambda text: None, Path(speed.__file__).parents[3]
    )
    command = bench._command(f"{OURS}{ELSEWHERE}", tmp_path / "asked", SCENARIOS)
    assert max(map(len, command)) < 1000, "an argument has a limit, and prompts may be long"
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert [row["token_ids"] for row in rows] == [one.token_ids for one in answers[:3]]
    assert [len(row["pass_seconds"]) for row in rows] == [PASSES, PASSES, 2]


async def test_the_floor_of_computing_repeats_what_groups_that_stay_launch(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a pass in which all groups stay would be faster than its floor on a GPU, where launching takes longest."""
    monkeypatch.setattr(CpuDevice, "repeated_rows", (2, 4))
    async with apart(checkpoint, {"device": "cpu", **room_for(16)}) as runtime:
        floors, repeated = Floors(runtime, NOTHING_STAYS), []
        launch, loaded = runtime.device.launch, await floors.load(shared=True)
        monkeypatch.setattr(
            runtime.device,
            "launch",
            lambda lane, work, after, repeats=None, **options: repeated.append(repeats) or launch(lane, work, after),
        )
        seconds = await floors.decode_seconds(loaded, 3, 4)
    keys = {key for key, *_ in filter(None, repeated) if isinstance(key, tuple)}
    assert keys == {key for key in runtime.catalog.order if key[1] != "attn"}, "on a CPU attention is never alike"
    assert len(seconds) == 4
    assert all(one > 0 for one in seconds)


async def scripted(
    monkeypatch: pytest.MonkeyPatch, names: Sequence[str], rounds: int, over: str = "", device: str = "cpu"
) -> tuple[list[ArmRun], list[tuple[str, Any, Any]]]:
    started: list[tuple[str, Any, Any]] = []

    async def run_limited(command: Sequence[str], limit: Any, folders: Any) -> tuple[str, int]:
        asked = json.loads(command[-1])
        if "device_floors" in command[2]:
            return json.dumps([{"pass_bytes": 1}]), 0
        name, options = asked["arm"], asked["options"]
        started.append((name, limit, options.get("gpu_memory")))
        if name == over == "accelerate" and limit is not None:
            raise OverLimit("too much")
        if name == over == "ring":
            raise ProgramFailed("ended with status 1")
        seconds = [len(started) + index / 10 for index in range(asked["scenarios"][0]["passes"])]
        floors = {"read": [1.0], "upload": [0.0], "compute": [0.5]} if name in WITHOUT else {}
        row = {"scenario": "1 greedy", "pass_seconds": seconds, "read_bytes_per_pass": 5.0, "token_ids": [[1, 2]]}
        return json.dumps([{**row, "floors": floors, "moving_groups": None, "device_bytes": 77}]), 7

    monkeypatch.setattr(speed, "run_limited", run_limited)
    monkeypatch.setattr(SpeedBench, "_lacking", lambda *_: None)
    limit = MemoryLimit(10**9, "watchdog")
    bench = SpeedBench(BUNDLED, {"device": device}, [Scenario(passes=3)], limit, lambda text: None)
    await bench.run(names, rounds)
    return bench.runs, started


async def test_arms_take_turns_and_what_holds_all_weights_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [OURS, "llama.cpp", "transformers"]
    runs, started = await scripted(monkeypatch, names, 2)
    limit = MemoryLimit(10**9, "watchdog")
    assert [one[:2] for one in started] == [
        ("llama.cpp", None),  # writes its weights before anything is measured
        (OURS, limit), ("llama.cpp", limit), ("transformers", None),
        ("transformers", None), ("llama.cpp", limit), (OURS, limit),
    ]  # fmt: skip
    first, *_ = results(runs, names, [Scenario()])
    assert first.arm == OURS
    assert len(first.pass_seconds) == 6
    assert first.ratios == pytest.approx((2.1, 7.1)), "each round by its own floor"
    assert first.floors == {"read": 1.0, "upload": 0.0, "compute": 0.5}


async def test_from_host_memory_has_the_gpu_memory_that_the_ring_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, started = await scripted(monkeypatch, [OURS, FROM_HOST, "ring"], 2, device="cuda")
    first = [("ring", None), (OURS, None), (FROM_HOST, 77)]
    assert [(name, memory) for name, _, memory in started] == [*first, *reversed(first)]
    assert [run.arm for run in runs].count("floors") == 2
    runs, started = await scripted(monkeypatch, [OURS, FROM_HOST], 1, device="cuda")
    assert [name for name, *_ in started] == [OURS]
    assert runs[-1].reason == "from host memory: needs --against ring, whose memory it gets"


@pytest.mark.parametrize(("over", "why"), [("accelerate", "over the memory limit"), ("ring", "ended with status 1")])
async def test_an_arm_that_fails_has_a_reason_and_no_figures(
    over: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, _ = await scripted(monkeypatch, [OURS, over], 1, over=over)
    assert [run.reason for run in runs if run.arm == over] == [f"{over}: {why}"]
    ours, other = results(runs, [OURS, over], [Scenario()])
    assert len(ours.pass_seconds) == 3
    assert other.pass_seconds == ()


def test_an_arm_that_turns_off_what_is_off_already_is_left_out() -> None:
    assert arms_of({}, ["ring"]) == list(WITHOUT)
    assert arms_of({"residency": False, "gpu_groups": 1}, []) == [
        OURS, "through the page cache", "by aiofiles", our_arm.SEQUENTIAL,
    ]  # fmt: skip


def test_an_arm_or_a_tree_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--against: need some of .*llama\.cpp.*, have 'vllm'"):
        SpeedBench(BUNDLED, {}, [ONE], None, lambda text: None).check(["vllm"])
    with pytest.raises(ConfigError, match=r"--beside: need a tree of penstock, with pipeline/api\.py; have /"):
        SpeedBench(BUNDLED, {}, [ONE], None, lambda text: None, tmp_path).check([])


async def test_what_cannot_run_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    bench = SpeedBench(BUNDLED, {"device": "cpu"}, [ONE], None, lambda text: None)
    await bench.run(["llama.cpp", "accelerate", "ring", FROM_HOST], 1)
    assert [run.reason for run in bench.runs] == [
        "--against llama.cpp: llama_cpp is not installed: pip install 'gguf>=0.17' 'llama-cpp-python>=0.3.36'",
        "--against accelerate: transformers is not installed: pip install 'accelerate>=1.10' 'transformers>=5'",
        "ring: needs a GPU, and --device cuda",
        "from host memory: needs a GPU, and --against ring, whose memory it gets",
    ]
    quantised = SpeedBench(BUNDLED.with_name("bundled-int4"), {"device": "cpu"}, [ONE], None, lambda text: None)
    await quantised.run(["accelerate"], 1)
    assert [run.reason for run in quantised.runs] == ["accelerate: needs a checkpoint that is not quantised"]


def test_a_pass_moves_all_weights_but_the_embedding(checkpoint: Path) -> None:
    layer = 48 * 48 * 2 + 48 * 24 * 2 + 3 * 48 * 104 + 2 * 48
    assert device_floors.bytes_of_a_pass(checkpoint) == 4 * (5 * layer + 259 * 48 + 48)
