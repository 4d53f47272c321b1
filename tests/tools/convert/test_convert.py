"""`penstock convert`: what it writes against formulas of the tests' own, and what is left when it fails."""

import asyncio
import errno
import json
import os
import re
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import quantised_models, tiny_models
from support.converted_weights import decoded
from support.quantised_families import FAMILIES, VOCABULARY_SIZE
from support.quantised_models import spread
from transformers import PreTrainedModel

from pipeline import Model, Output
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.checkpoints.written_formats import written_format
from pipeline.checkpoints.written_shards import WrittenShards
from pipeline.cli import main
from pipeline.system.hub_cache import BUNDLED, BUNDLED_INT4
from pipeline.tools.commands.progress import Progress
from pipeline.tools.convert.conversion import plan_conversion
from pipeline.tools.convert.convert import convert

SIZES = {"hidden_size": 128, "intermediate_size": 384}
WEIGHTS = "model.safetensors"


def save(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **sizes: int) -> PreTrainedModel:
    model = tiny_models.randomised(FAMILIES[family](**{**SIZES, **sizes}), seed=5)
    model.to(dtype).save_pretrained(folder)
    return model


async def answered(folder: Path) -> Output:
    async with Model.open(folder, device="cpu") as model:
        return await model.generate(tiny_models.PROMPT, max_new_tokens=8, ignore_eos=True, logprobs=VOCABULARY_SIZE)


@pytest.mark.parametrize("name", ["int4", "fp8", "mxfp4"])
@pytest.mark.parametrize("family", ["llama", "qwen2_tied"])
def test_it_opens_as_what_the_format_means_and_each_number_is_the_nearest(
    name: str, family: str, tmp_path: Path
) -> None:
    model, out = save(tmp_path / "in", family), tmp_path / "out"
    changes = convert(tmp_path / "in", out, written_format(name))
    weights = decoded(name, out)
    before, after = dict.fromkeys(changes, 0.0), dict.fromkeys(changes, 0.0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            kind = path.split(".")[-2].removesuffix("_proj")
            kind = {"lm_head": "head", "embed_tokens": "embedding"}.get(kind, kind)
            before[kind if parameter.ndim == 2 else "norms and biases"] += parameter.square().sum().item()
            after[kind if parameter.ndim == 2 else "norms and biases"] += (
                (weights[path] - parameter).square().sum().item()
            )
            parameter.copy_(weights[path])
    tied = family == "qwen2_tied"
    for kind, change in changes.items():
        stays = kind in ("embedding", "norms and biases")
        assert change.relative_error == pytest.approx((after[kind] / before[kind]) ** 0.5, abs=1e-6)
        assert (change.relative_error == 0) == stays
        assert change.relative_error < {"int4": 0.12, "fp8": 0.03, "mxfp4": 0.13}[name]
    assert ("head" in changes) != tied
    said = json.loads((out / "config.json").read_text())
    assert said["quantization_config"]["ignore"] == ["lm_head"] * tied
    kept = json.loads((tmp_path / "in" / "config.json").read_text())
    assert {key: said[key] for key in kept} == kept
    expected = tiny_models.greedy(model, tiny_models.PROMPT, 8)
    output = asyncio.run(answered(out))
    assert list(output.token_ids) == expected.token_ids
    for step, logprobs in enumerate(output.logprobs or ()):
        found = torch.tensor([logprobs[token_id] for token_id in range(VOCABULARY_SIZE)])
        torch.testing.assert_close(found, expected.logprobs[step], atol=1e-4, rtol=0)


SCALES: dict[str, tuple[int, Callable[[torch.Tensor], torch.Tensor]]] = {
    "int4": (64, lambda most: (most / 7.5).bfloat16()),
    "fp8": (0, lambda most: (most / 448).bfloat16()),
    "mxfp4": (32, lambda most: (127 + (most.double() / 3.5).log2().floor()).to(torch.uint8)),
}
"""Columns that share one, and how compressed-tensors chooses it from the largest number."""


@pytest.mark.parametrize("name", SCALES)
def test_scales_are_those_that_compressed_tensors_chooses(name: str, tmp_path: Path) -> None:
    model = save(tmp_path / "in", dtype=torch.bfloat16)
    columns, scale = SCALES[name]
    convert(tmp_path / "in", tmp_path / "out", written_format(name, 64))
    stored, weights = load_file(tmp_path / "out" / WEIGHTS), decoded(name, tmp_path / "out")
    for path, parameter in model.named_parameters():
        if (scales := stored.get(path.removesuffix("weight") + "weight_scale")) is not None:
            weight = parameter.detach().float()
            most = weight.unflatten(1, (-1, columns or weight.shape[1])).abs().amax(-1)
            assert torch.equal(scales, scale(most))
            if name == "int4":
                rounded = (weights[path] - weight).abs() / spread(scales, weight.shape[1])
                assert (rounded <= 0.54).all(), "what is decoded is rounded to bfloat16, too"


@pytest.mark.parametrize("name", ["awq", "fp8 blocks, head", "nf4 nested", "ct int8 rows, head and embedding"])
def test_a_quantised_checkpoint_becomes_what_its_decoded_weights_become(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = "qwen2_tied" if "embedding" in name else "llama"
    (tmp_path / "in").mkdir()
    reference = quantised_models.save(quantised_models.FORMATS[name], family, tmp_path / "in", **SIZES)
    reference.save_pretrained(tmp_path / "dense")
    monkeypatch.setattr("pipeline.tools.convert.conversion.BLOCK_ITEMS", 5000)
    for folder in ("in", "dense"):
        convert(tmp_path / folder, tmp_path / f"{folder} out", written_format("int4", 32))
    found, expected = (load_file(tmp_path / f"{folder} out" / WEIGHTS) for folder in ("in", "dense"))
    assert found.keys() == expected.keys()
    for path, tensor in found.items():
        torch.testing.assert_close(tensor, expected[path], atol=0, rtol=0)


def test_shards_and_blocks_change_no_bit_and_other_files_come_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "in", dtype=torch.bfloat16)
    for name in ("tokenizer.json", "chat_template.jinja", "model.bin", "README.md"):
        (tmp_path / "in" / name).write_text(name)
    convert(tmp_path / "in", tmp_path / "whole", written_format("int4"))
    monkeypatch.setattr("pipeline.tools.convert.conversion.BLOCK_ITEMS", 1000)
    steps: list[tuple[int, int]] = []
    out = tmp_path / "cut"
    convert(tmp_path / "in", out, written_format("int4"), shard_bytes=50_000, progress=lambda *step: steps.append(step))
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3
    index = json.loads((out / "model.safetensors.index.json").read_text())
    cut = {path: tensor for file in files for path, tensor in load_file(file).items()}
    whole = load_file(tmp_path / "whole" / WEIGHTS)
    assert cut.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(cut[path], tensor) for path, tensor in whole.items())
    assert steps[-1][0] == steps[-1][1]
    assert len(steps) > 300
    assert steps == sorted(steps)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {WEIGHTS, "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}
    with open_checkpoint(tmp_path / "whole") as checkpoint:
        assert not [one for one in checkpoint.tensors.values() if one.start % 2], "items begin at multiples of them"


def test_the_bundled_model_in_int4_is_what_is_made_of_it(tmp_path: Path) -> None:
    convert(BUNDLED, tmp_path / "out", written_format("int4"))
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {path.name: path.read_bytes() for path in BUNDLED_INT4.iterdir() if path.suffix != ".md"} == made
    assert sum(map(len, made.values())) < 6_000_000


def test_a_head_may_stay_as_it_is(tmp_path: Path) -> None:
    model = save(tmp_path / "in")
    changes = convert(tmp_path / "in", tmp_path / "out", written_format("fp8"), keep_head=True)
    assert changes["head"].relative_error == 0 < changes["q"].relative_error
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["quantization_config"]["ignore"] == ["lm_head"]
    assert torch.equal(load_file(tmp_path / "out" / WEIGHTS)["lm_head.weight"], model.lm_head.weight)


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def test_a_wide_matrix_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in", dtype=torch.bfloat16, intermediate_size=64_000, num_hidden_layers=1)
    monkeypatch.setattr("pipeline.tools.convert.conversion.BLOCK_ITEMS", 200_000)
    with open_checkpoint(tmp_path / "in") as checkpoint:
        planned = plan_conversion(tmp_path / "in", checkpoint, written_format("int4")).memory_bytes
    convert(tmp_path / "in", tmp_path / "first", written_format("int4"))  # kernels and threads come once
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
    before = status_bytes("VmRSS")
    convert(tmp_path / "in", tmp_path / "out", written_format("int4"))
    matrix_bytes = 64_000 * 128 * 4
    assert status_bytes("VmHWM") - before < planned < 2 * matrix_bytes


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAILURES: dict[str, tuple[list[str], int, str]] = {
    "exists": ([], 1, "exists and is not an empty folder; choose another name or remove it"),
    "killed": ([], 1, "out.partial: is left from a run that was killed, or still runs; remove it"),
    "no room": ([], 1, "the disk is too full: need .* have 12345 .12.3 kB.; make room, or another format"),
    "room ends": ([], 1, "out: No space left on device"),
    "interrupted": ([], 130, "penstock: interrupted"),
    "cut short": ([], 1, "tensor 'model.*weight': need .* bytes at .*, have .*; fetch the file"),
    "nothing there": ([], 1, "in: is missing|in: no such folder"),
    "columns": ([], 1, "down_proj.weight: need .* group size, 128, divides, have 416, as in 3 of 22 .* --group 32$"),
    "odd columns": (
        [],
        1,
        "group size, 128, divides, have 392, .* convert it with --to fp8, which has one scale a row",
    ),
    "unknown": (["--to", "int5"], 1, "--to: unknown format 'int5'; known are int4, fp8, mxfp4"),
    "group": (["--group", "48"], 1, "--group: need one of 128, 64, 32, have 48"),
    "group of fp8": (["--to", "fp8", "--group", "32"], 1, "--group: is for --to int4; fp8 says itself"),
    "no text": (["--text", "absent.txt"], 1, "absent.txt: is missing"),
    "no tokenizer": (["--text", "in/config.json"], 1, "has no tokenizer"),
}


@pytest.mark.parametrize("fault", FAILURES)
def test_what_fails_says_why_and_leaves_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options, status, message = FAILURES[fault]
    save(tmp_path / "in", intermediate_size={"columns": 416, "odd columns": 392}.get(fault, 384))
    if (name := {"exists": "out", "killed": "out.partial"}.get(fault)) is not None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    elif fault == "no room":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(12345))
    elif fault == "room ends":
        monkeypatch.setattr(WrittenShards, "write", raising(FULL))
    elif fault == "interrupted":
        once = iter([signal.SIGINT])
        monkeypatch.setattr(Progress, "go_on", lambda *_: os.kill(os.getpid(), next(once, 0)))
    elif fault == "cut short":
        monkeypatch.setattr(Progress, "go_on", lambda *_: os.truncate(tmp_path / "in" / WEIGHTS, 1000))
    elif fault == "nothing there":
        shutil.rmtree(tmp_path / "in")
    there = sorted(tmp_path.rglob("*"))
    assert main(["convert", "in", "out", "--to", "int4", *options]) == status
    err = capsys.readouterr().err.strip()
    assert re.search(message, err.splitlines()[-1]), err
    assert sorted(tmp_path.rglob("*")) == there
