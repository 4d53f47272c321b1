"""Opening reads headers only, so its time does not depend on the size of the weights."""

import json
import math
import time
from pathlib import Path

import pytest

import pipeline.folder as folders
from pipeline import CheckpointError, Model
from pipeline.models.config import read_config
from pipeline.models.families import group_specs
from pipeline.weights.presets import PRESETS

SHARDS = 30


def write_hollow_checkpoint(folder: Path, like: str) -> int:
    """A checkpoint of real headers over holes: no disk space behind its bytes. Returns how many it claims to have."""
    (folder / "config.json").write_text(json.dumps(PRESETS[like]))
    specs = {spec.name: spec for group in group_specs(read_config(folder)).values() for spec in group}
    weight_map, total_bytes = {}, 0
    for number in range(SHARDS):
        file, header, end = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors", {}, 0
        for spec in list(specs.values())[number::SHARDS]:
            begin, end = end, end + math.prod(spec.shape) * 2
            header[spec.name] = {"dtype": "BF16", "shape": list(spec.shape), "data_offsets": [begin, end]}
            weight_map[spec.name] = file
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        with (folder / file).open("wb") as shard:
            shard.write(len(raw).to_bytes(8, "little") + raw)
            shard.truncate(8 + len(raw) + end)
        total_bytes += end
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total_bytes


async def test_141_gigabytes_open_in_under_a_second(tmp_path: Path) -> None:
    assert write_hollow_checkpoint(tmp_path, "llama-3-70b") > 141e9
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        model = await Model.open(tmp_path, gpu_groups=1, context_tokens=16, max_tokens_per_pass=16)
        seconds.append(time.perf_counter() - started)
        await model.aclose()
    assert min(seconds) < 1.0


async def test_a_tokenizer_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path, vocabulary_size: int) -> object:
        raise PermissionError(13, "Permission denied", str(folder / "tokenizer.json"))

    monkeypatch.setattr(folders, "load_tokenizer", refused)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: Permission denied"):
        await Model.open(device="cpu")


async def test_what_is_wrong_with_a_tokenizer_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(folder: Path, vocabulary_size: int) -> object:
        raise CheckpointError("a tokenizer of no kind")

    monkeypatch.setattr(folders, "load_tokenizer", odd)
    with pytest.raises(CheckpointError, match="bundled: a tokenizer of no kind"):
        await Model.open(device="cpu")
