"""`penstock plan` as people use it: what it prints, its JSON, a machine that is not here, and what it refuses."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support import quantised_models, tiny_models

from pipeline.api import BUNDLED
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.checkpoints.config_alone import config_alone
from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.cli import main
from pipeline.config import Config
from pipeline.devices.port import ONE_PLACE, TWO_PLACES
from pipeline.devices.sim import SimDevice
from pipeline.generation.blueprint import draw_up
from pipeline.models.model_config import read_config
from pipeline.tools.bench.planning import ALONE

pytestmark = pytest.mark.usefixtures("short_measurements")
ELSEWHERE = ("--disk-gbps", "2", "--tflops", "50", "--host-memory", "4GB")


def plan(*arguments: str) -> int:
    return main(["plan", str(BUNDLED), *arguments])


def test_this_machine_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--device", "cpu-copy", "--batch-tokens", "2", "--no-residency") == 0
    captured = capsys.readouterr()
    assert re.search(r"^machine +disk .*/s · H2D .*/s$", captured.out, re.M)
    assert re.search(r"^forecast +[0-9.]+ s per pass of 2 tokens · [0-9.]+ tokens/s$", captured.out, re.M)
    assert re.search(
        r"^binds +(disk|H2D|compute): disk [0-9.]+ s · H2D [0-9.]+ s · compute [0-9.]+ s$", captured.out, re.M
    )
    assert "otherwise  8 tokens per pass: " in captured.out
    assert "reading alone" in captured.err


def test_a_forecast_can_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--device", "cpu", "--no-residency", "--check", "3", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["measured_seconds"]) == 3
    assert min(told["pass_seconds"], *told["measured_seconds"]) > 0
    assert plan("--device", "cpu", "--check", "1", "--batch-tokens", "3") == 0
    assert re.search(
        r"^measured +[0-9.]+ s per pass \(.*\): the forecast is [+-].*% off$", capsys.readouterr().out, re.M
    )


def test_as_json_for_a_machine_with_a_gpu_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*ELSEWHERE, "--h2d-gbps", "4", "--gpu-memory", "180MB", "--memory-gbps", "1000", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["h2d_bytes_per_second"] == 4e9
    assert told["memory"]["device"]["have_bytes"] == 180_000_000
    assert told["resource_seconds"]["disk"] == pytest.approx(told["read_bytes_per_pass"] / 2e9)
    assert told["kv_room"]["nbytes"] > 1e6
    assert told["pass_seconds"] >= max(told["resource_seconds"].values())
    assert told["tokens_per_second"] == pytest.approx(1 / told["pass_seconds"])


def planned(path: Path, device: SimDevice) -> tuple[object, ...]:
    """All sizes that the plan of a model rests on, and what it comes to."""
    settings, alone = Config(gpu_groups=3, context_tokens=64), config_alone(path)
    with open_checkpoint(path) if alone is None else contextlib.nullcontext(alone.checkpoint) as checkpoint:
        model = read_config(path) if alone is None else alone.model
        drawn = draw_up(model, checkpoint, settings, device)
    sizes = [[(one.short, one.shape, one.length) for one in group.tensors] for group in drawn.groups.groups]
    slots, residency = drawn.plan.slots, drawn.plan.residency
    bytes_of_groups = [drawn.catalog.group_bytes(place) for place in ("host", "device")]
    held = [one for one in drawn.plan.memory.holdings if "Python" not in one.holder]
    return drawn.model.family, drawn.dtype, sizes, bytes_of_groups, slots, residency, drawn.plan.kv, held


@pytest.mark.parametrize("variant", tiny_models.VARIANTS)
def test_sizes_from_a_config_alone_are_those_of_the_files(variant: str, tmp_path: Path) -> None:
    """To the byte, in host slots too, whose windows depend on how tensors lie in the files."""
    tiny_models.save(variant, tmp_path / "full", dtype=torch.bfloat16 if "qwen" in variant else torch.float32)
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "full" / "config.json", tmp_path / "alone")
    memory = {"host": 10**9, "device": 10**8}
    for device in (SimDevice(ONE_PLACE, memory=memory), SimDevice(TWO_PLACES, alignment_bytes=256, memory=memory)):
        from_files = planned(tmp_path / "full", device)
        assert planned(tmp_path / "alone", device) == from_files
        assert planned(tmp_path / "full" / "config.json", device) == from_files


@pytest.mark.parametrize("name", quantised_models.FORMATS)
def test_sizes_of_quantised_weights_follow_from_a_config_alone(name: str, tmp_path: Path) -> None:
    """But for the dtype of scales, which it does not say."""
    quantised_models.save(quantised_models.FORMATS[name], "llama", tmp_path)
    device = SimDevice(ONE_PLACE, memory={"host": 10**9, "device": 10**8})
    nbytes = {}
    for path in (tmp_path, tmp_path / "config.json"):
        sizes = planned(path, device)[2]
        assert isinstance(sizes, list)
        nbytes[path] = sum(length for group in sizes for _, _, length in group)
    assert nbytes[tmp_path / "config.json"] == pytest.approx(nbytes[tmp_path], rel=0.25)


def test_a_format_counts_as_it_would_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"layers": 2, "hidden_size": 256, "ffn_size": 512, "vocabulary_size": 300}
    for stored, name in ((None, "plain"), ("int4", "quantised")):
        make_checkpoint(tmp_path / name, "llama-3.2-1b", stored=stored, **shape)
    plain = tmp_path / "plain" / "config.json"
    alone = config_alone(plain, "int4")
    assert alone is not None
    with open_checkpoint(tmp_path / "quantised") as written:
        lengths = {name: one.length for name, one in written.tensors.items()}
    assert {name: one.length for name, one in alone.checkpoint.tensors.items()} == lengths
    assert main(["plan", str(plain), "--format", "int4"]) == 0
    assert "computed, without weights, from config.json, in bfloat16 and int4\n" in capsys.readouterr().out
    for path, name, said in (
        (plain, "int5", "unknown format 'int5'; known are int4, fp8, mxfp4"),
        (tmp_path / "quantised" / "config.json", "int4", "config.json says in which format weights are stored"),
        (tmp_path / "plain", "int4", "has weights, and is planned as these are stored; leave it out"),
    ):
        assert main(["plan", str(path), "--format", name]) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.2-1b", 1_235_814_400),
        ("mistral-7b", 7_241_732_096),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-0.6b", 596_049_920),
    ],
)
def test_sizes_of_a_preset_are_those_that_its_model_is_known_to_have(preset: str, parameters: int) -> None:
    alone = config_alone(Path(preset))
    assert alone is not None
    assert sum(one.length for one in alone.checkpoint.tensors.values()) == 2 * parameters


def test_a_limit_beyond_the_memory_that_is_there_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told = r"^host_memory is 900TB, of which \d[\d.]* GB can be had now; the plan keeps to that$"
    assert main(["plan", "llama-3-8b", "--device", "cpu", "--host-memory", "900TB"]) == 0
    assert [bool(re.match(told, one.getMessage())) for one in caplog.records] == [True]
    caplog.clear()
    numbers = ["--disk-gbps", "3", "--tflops", "1"]
    assert main(["plan", "llama-3-8b", "--device", "cpu", "--host-memory", "900TB", *numbers]) == 0
    assert main(["plan", "llama-3-8b", "--device", "cpu", "--host-memory", "80%"]) == 0
    assert not caplog.records, "a machine that is not here has what is said, and a share is of what is there"


def test_the_plan_says_what_one_request_at_a_time_has(capsys: pytest.CaptureFixture[str]) -> None:
    """By default much of 8 GB is for other requests, and whoever has one alone waits for weights that it keeps out."""
    machine = ["--disk-gbps", "3", "--tflops", "1", "--memory-gbps", "30", "--host-memory", "8G", "--device", "cpu"]

    def told(*arguments: str) -> dict[str, Any]:
        fixed = ["--set", "max_tokens_per_pass=512"]  # chosen, it would jump with what the process has taken since
        assert main(["plan", "llama-3-8b", *machine, *fixed, "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    shared, alone = told(), told("--set", "max_requests=1")
    told_seconds = shared["otherwise"].pop(ALONE)["pass_seconds"]
    assert told_seconds == pytest.approx(alone["pass_seconds"], rel=0.05), "but for what the process has taken since"
    assert told_seconds < 0.8 * shared["pass_seconds"]
    assert set(shared["otherwise"]) == set(alone["otherwise"]) == {"1 GB more of host memory", "4 tokens per pass"}
    assert ALONE not in told("--batch-tokens", "2")["otherwise"], "of which one at least is another's, or of a prompt"


@pytest.mark.parametrize(
    "arguments",
    [["llama-3-70b"], [str(BUNDLED / "config.json")], ["./config.json"]],
    ids=["preset", "file", "relative"],
)
def test_without_weights_there_is_a_plan_and_with_numbers_a_forecast(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BUNDLED)
    numbers = ["--disk-gbps", "7", "--h2d-gbps", "25", "--tflops", "150", "--host-memory", "64G", "--gpu-memory", "24G"]
    assert main(["plan", *arguments, "--device", "cpu", "--host-memory", "64G"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^sizes      computed, without weights, from .*, in bfloat16", out, re.M)
    assert "for one, give all of --disk-gbps, --tflops, --host-memory\n" in out
    assert main(["plan", *arguments, *numbers, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "bfloat16" in told["sizes_computed_from"]
    assert told["pass_seconds"] > 0
    assert main(["plan", *arguments, "--check", "1"]) == 1
    assert re.search("penstock: --check: runs passes, for which .* has no weights", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("llama-3-7b", "no such folder; unknown preset 'llama-3-7b'; known are llama-2-7b, "),
        ("lama-3-70b", "did you mean 'llama-3-70b'?"),
        ("/no/where", "no such folder; need the folder of a checkpoint, its config.json, or the name of"),
        ("x" * 300, "cannot be looked into: File name too long"),
        ("", "config.json: is missing; need a folder with config.json and safetensors files"),
        ("model.safetensors", "is a file, and no config.json"),
        ("fifo.json", "fifo.json: is not a regular file"),
        ("tokenizer.json", "is not the config.json of a model, as it names no model_type"),
        ("broken.json", "broken.json: broken JSON"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(
    model: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if model.endswith((".json", ".safetensors")):
        os.mkfifo(model) if model == "fifo.json" else Path(model).write_text("{}" if model[0] == "t" else "{")
    assert main(["plan", model]) == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


def test_without_a_gpu_there_is_no_link(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*ELSEWHERE, "--no-residency") == 0
    out = capsys.readouterr().out
    assert "H2D" not in out
    assert re.search(
        r"^kv room +[0-9,]+ tokens in [0-9.]+ MB: .*\(max_requests\).*; no more weights move for it$", out, re.M
    )
    assert re.search(
        r"^pass size  up to [0-9,]+ tokens; beside running requests .* 0\.5 s \(max_pass_seconds\); reckoned with "
        r"disk 2 GB/s \(as told\), computing 32 GB/s \(assumed\)$",
        out,
        re.M,
    )
    assert "otherwise  what fits stays: " in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--check", "0"], "--check: need at least 1 pass"),
        ([*ELSEWHERE, "--check", "2"], "--check: need at least 1 pass, and the machine here"),
        (["--batch-tokens", "0"], "--batch-tokens: need a number from 1 to 65536, have 0"),
        (["--disk-gbps", "1"], "--tflops, --host-memory: a machine that is not here needs it too"),
        (["--disk-gbps", "1", "--host-memory", "4GB"], "--tflops: a machine that is not here needs it"),
        (["--tflops", "1", "--host-memory", "4GB"], "--disk-gbps: a machine that is not here needs it"),
        (["--disk-gbps", "1", "--tflops", "1"], "--host-memory: a machine that is not here needs it"),
        (
            ["--disk-gbps", "1", "--tflops", "1", "--host-memory", "80%"],
            "--host-memory: need a size as 64GB, have 80% of",
        ),
        ([*ELSEWHERE, "--h2d-gbps", "1"], "--gpu-memory: a machine that is not here needs it"),
        ([*ELSEWHERE, "--h2d-gbps", "0", "--gpu-memory", "1GB"], "--h2d-gbps: need a number above 0"),
        ([*ELSEWHERE, "--h2d-gbps", "1", "--gpu-memory", "1MB"], "device memory: need"),
        (["--host-memory", "1MB", "--device", "cpu"], "host memory: need"),
    ],
    ids=str,
)
def test_what_can_never_work_is_refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*arguments) == 1
    assert says in capsys.readouterr().err
