"""A refused plan says what to change, and each way that it names works as it is named."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from support.small_checkpoints import write_small_checkpoint

from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.generation.build import build
from pipeline.system.host_memory import available_host_bytes, resident_bytes

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "model"
    write_small_checkpoint(folder, "qwen3-8b", layers=4)
    return folder


def ways(told: str, disk: Path) -> list[dict[str, Any]]:
    """The settings of each way."""
    found = []
    for way in told.split(", or "):
        pairs = re.findall(r"(\w+) to (?:at least|at most) (\w+)", way)
        changes: dict[str, Any] = {name: int(value) if value.isdecimal() else value for name, value in pairs}
        found.append({"kv_disk": disk} if "kv_disk to a folder" in way else changes)
    return found


@pytest.mark.parametrize(
    ("settings", "spare", "names"),
    [
        ({"kv_tokens": 200_000}, 180, ["host_memory", "kv_tokens", "kv_disk"]),
        ({"max_tokens_per_pass": 60_000}, 16, ["host_memory", "max_tokens_per_pass"]),
        ({"max_requests": 4096, "max_tokens_per_pass": 16}, 9, ["host_memory", "max_requests"]),
        ({"gpu_groups": 2000, "residency": False}, 20, ["host_memory", "gpu_groups"]),
        ({"device": "cpu-copy", "host_groups": 2000, "residency": False}, 20, ["host_memory", "host_groups"]),
        ({"device": "cpu-copy", "kv_tokens": 200_000, "gpu_memory": "14M"}, 300, ["gpu_memory", "kv_tokens"]),
        ({"max_requests": 4096, "max_tokens_per_pass": 60_000}, 10, ["host_memory"]),
    ],
    ids=str,
)
def test_every_way_that_a_refusal_names_works(
    settings: dict[str, Any], spare: int, names: list[str], checkpoint: Path, tmp_path: Path
) -> None:
    settings = {"device": "cpu", "context_tokens": 64, **settings}
    settings["host_memory"] = resident_bytes() + (64 << 20) + spare * MEGABYTE
    with pytest.raises(ConfigError, match=r"memory: need .*; set ") as refused:
        build(checkpoint, Config(**settings))
    found = ways(str(refused.value).rpartition("; set ")[2], tmp_path)
    assert [next(iter(way)) for way in found] == names
    for way in found:
        asyncio.run(build(checkpoint, Config(**{**settings, **way})).aclose())


def test_fewer_slots_for_experts_are_a_way(tmp_path: Path) -> None:
    shape = {"layers": 2, "hidden_size": 256, "heads": 4, "kv_heads": 2, "head_dim": 32, "vocabulary_size": 300}
    make_checkpoint(tmp_path / "model", "qwen3-30b-a3b", **shape, experts=8, chosen_experts=2, expert_size=512)
    settings = {"device": "cpu-copy", "context_tokens": 64, "max_tokens_per_pass": 16, "gpu_memory": "14M"}
    with pytest.raises(ConfigError, match=r"^device memory: need .*\(expert slots 12\.6 MB \[gpu_experts\]") as refused:
        build(tmp_path / "model", Config(**settings))
    found = ways(str(refused.value).rpartition("; set ")[2], tmp_path)
    assert [next(iter(way)) for way in found] == ["gpu_memory", "gpu_experts"]
    for way in found:
        asyncio.run(build(tmp_path / "model", Config(**{**settings, **way})).aclose())


def test_settings_that_must_be_lowered_together_are_named_together(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no single one helps, and the machine has no more."""
    have = (64 << 20) + 12 * MEGABYTE
    monkeypatch.setattr("pipeline.engine.plan.resident_bytes", lambda: 0)
    monkeypatch.setattr("pipeline.devices.cpu.available_host_bytes", lambda: have)
    settings = {"device": "cpu", "context_tokens": 64, "max_requests": 4096, "max_tokens_per_pass": 60_000}
    both = "; set max_requests to at most 1 and max_tokens_per_pass to at most 16$"
    with pytest.raises(ConfigError, match=both) as refused:
        build(checkpoint, Config(**settings))
    [way] = ways(str(refused.value).rpartition("; set ")[2], checkpoint)
    asyncio.run(build(checkpoint, Config(**{**settings, **way})).aclose())
    monkeypatch.setattr("pipeline.devices.cpu.available_host_bytes", lambda: 60 << 20)
    with pytest.raises(ConfigError, match=r"; no setting is sure to make it fit: free [\d.]+ MB of host memory$"):
        build(checkpoint, Config(**settings))
    monkeypatch.setattr("pipeline.engine.plan.process_bounds", lambda *_: {"the limit of data (ulimit -d)": 50 << 20})
    with pytest.raises(ConfigError, match=r"\); raise the limit; no setting is sure to make it fit: free [\d.]+ MB"):
        build(checkpoint, Config(**settings))
    assert available_host_bytes() > have
