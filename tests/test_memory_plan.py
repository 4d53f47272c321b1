"""The memory plan: what it says, what it refuses, and that it is what the runtime really takes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.small_checkpoints import write_small_checkpoint

from pipeline import memory as memory_module
from pipeline import plan as plan_module
from pipeline.build import build
from pipeline.config import Config
from pipeline.devices.cpu import CpuDevice
from pipeline.errors import ConfigError
from pipeline.memory import Holding, MemoryPlan, available_host_bytes, human_bytes

GIGABYTE = 10**9
MEMINFO = (
    "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\nHugePages_Total:   0\n"
)
MACHINE_BYTES = 8_000_000 * 1024


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (7, "7 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (999_400, "999 kB"),
        (999_500, "1 MB"),
        (999_999, "1 MB"),
        (16_060_522_496, "16.1 GB"),
        (999_499_999_999, "999 GB"),
        (1_500_000_000_000, "1.5 TB"),
        (12_345_000_000_000, "12.35 TB"),
    ],
)
def test_human_bytes(nbytes: int, text: str) -> None:
    assert human_bytes(nbytes) == text


def plan(host: int, device: int) -> MemoryPlan:
    holdings = (
        Holding("4 slots", "host", 2 * GIGABYTE, "host_groups"),
        Holding("KV cache", "device", 5 * GIGABYTE, "context_tokens"),
        Holding("2 slots", "device", 3 * GIGABYTE, "gpu_groups"),
        Holding("rows", "host", GIGABYTE, "max_tokens_per_pass"),
    )
    return MemoryPlan(holdings, {"host": host, "device": device})


def test_a_plan_that_just_fits_passes() -> None:
    plan(3 * GIGABYTE, 8 * GIGABYTE).check()


def test_a_plan_that_cannot_fit_names_the_place_need_have_and_the_knob_of_the_largest() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(3 * GIGABYTE - 1, 100 * GIGABYTE).check()
    assert str(caught.value) == (
        "host memory: need 3 GB, have 3 GB (4 slots 2 GB [host_groups]; rows 1 GB [max_tokens_per_pass]); "
        "lower host_groups"
    )
    with pytest.raises(ConfigError, match=r"^device memory: need 8 GB, have 7 GB .*; lower context_tokens$"):
        plan(100 * GIGABYTE, 7 * GIGABYTE).check()


def test_a_plan_reads_as_one_line_per_holding() -> None:
    assert str(plan(4 * GIGABYTE, 10**10)).splitlines() == [
        "host        2 GB  4 slots [host_groups]",
        "host        1 GB  rows [max_tokens_per_pass]",
        "host        3 GB  of 4 GB",
        "device      5 GB  KV cache [context_tokens]",
        "device      3 GB  2 slots [gpu_groups]",
        "device      8 GB  of 10 GB",
    ]


@pytest.mark.parametrize(
    ("cgroup", "files", "available"),
    [
        ("0::/\n", {}, MACHINE_BYTES),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5\n"}, MACHINE_BYTES),
        ("0::/\n", {"memory.max": "3000000\n", "memory.current": "1000000\n"}, 2_000_000),
        ("0::/\n", {"memory.max": f"{MACHINE_BYTES * 2}\n", "memory.current": "5\n"}, MACHINE_BYTES),
        ("0::/\n", {"memory.max": f"{MACHINE_BYTES * 2}\n", "memory.current": f"{MACHINE_BYTES * 2 - 7}\n"}, 7),
        ("0::/\n", {"memory.max": "3000000\n"}, MACHINE_BYTES),
        ("0::/a/b\n", {"a/b/memory.max": "900\n", "a/b/memory.current": "200\n", "memory.max": "5\n"}, 700),
        ("9:name=systemd:/x\n4:memory:/y\n0::/a\n", {"a/memory.max": "90\n", "a/memory.current": "20\n"}, 70),
        ("9:name=systemd:/x\n4:memory:/y\n", {"y/memory.max": "90\n", "y/memory.current": "20\n"}, MACHINE_BYTES),
    ],
)
def test_the_control_group_bounds_what_the_machine_has(
    cgroup: str, files: dict[str, str], available: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory_module, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert available_host_bytes() == available


def test_this_machine_has_some_memory() -> None:
    assert 1 << 20 < available_host_bytes() < 1 << 50


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "model"
    write_small_checkpoint(folder, "qwen3-8b")
    return folder


SETTINGS: list[dict[str, Any]] = [
    {},
    {"gpu_groups": 1},
    {"gpu_groups": 5, "host_groups": 3, "context_tokens": 33},
    {"gpu_groups": 3, "host_groups": 1, "max_tokens_per_pass": 7},
    {"gpu_groups": 2, "host_groups": 2, "context_tokens": 40, "max_tokens_per_pass": 100, "dtype": "float32"},
]


@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_plan_is_what_the_device_hands_out(device: str, settings: dict[str, Any], checkpoint: Path) -> None:
    runtime = build(checkpoint, Config(device=device, **settings))
    assert isinstance(runtime.device, CpuDevice)
    taken = sorted(memory.nbytes for memory in runtime.device._memory)
    other = ("activations", "Python")
    held = [holding for holding in runtime.plan.holdings if not holding.holder.startswith(other)]
    assert len(held) == len(runtime.plan.holdings) - 3
    assert {holding.place for holding in held} == {"host"} | ({"device"} if device == "cpu-copy" else set())
    assert sum(holding.nbytes for holding in held) == sum(taken)
    several = ("slots", "KV blocks")
    slots = [holding.nbytes for holding in held if any(word in holding.holder for word in several)]
    others = [holding.nbytes for holding in held if not any(word in holding.holder for word in several)]
    for nbytes in others:
        taken.remove(nbytes)
    assert sum(taken) == sum(slots)
    asyncio.run(runtime.aclose())


def test_a_model_that_cannot_fit_is_refused_before_any_memory_is_taken(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(CpuDevice, "host_memory", lambda self, nbytes: taken.append(nbytes))
    monkeypatch.setattr(plan_module, "available_host_bytes", lambda: 100_000)
    monkeypatch.setattr(plan_module, "resident_bytes", lambda: 900_000)
    with pytest.raises(
        ConfigError, match=r"^host memory: need .*, have 1 MB .*; lower context_tokens, or set kv_disk$"
    ):
        build(checkpoint, Config(device="cpu", context_tokens=40_000, max_tokens_per_pass=1))
    assert taken == []
