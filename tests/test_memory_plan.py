"""The memory plan: what it says, what it refuses, and that it is what the runtime really takes."""

import asyncio
from pathlib import Path
from typing import Any

import numpy
import pytest
from support import tiny_models
from support.kv_places import settings_with_room
from support.small_checkpoints import write_small_checkpoint

from pipeline.config import Config
from pipeline.devices.cpu import CpuDevice
from pipeline.engine import plan as plan_module
from pipeline.errors import ConfigError
from pipeline.generation.build import build
from pipeline.system import proc
from pipeline.system.host_memory import available_host_bytes
from pipeline.system.memory_plan import Holding, MemoryPlan
from pipeline.system.sizes import human_bytes, parse_bytes

GIGABYTE = 10**9
MEMINFO = (
    "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"
    "CommitLimit:     8192000 kB\nCommitted_AS:    5120000 kB\nHugePages_Total:   0\n"
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


@pytest.mark.parametrize(
    ("value", "nbytes"),
    [
        (4096, 4096),
        ("1.8GB", 1_800_000_000),
        ("2.3 TB", 2_300_000_000_000),
        ("8G", 8_000_000_000),
        ("8Gi", 8 << 30),
        ("8 GB", 8_000_000_000),
        ("8g", 8_000_000_000),
        ("8gi", 8 << 30),
        ("0.5m", 500_000),
        ("8000000001", 8_000_000_001),
        (numpy.int64(8_000_000_001), 8_000_000_001),
        ("512MiB", 512 << 20),
        ("2 kB", 2000),
        ("100B", 100),
        ("10gib", 10 << 30),
        ("80%", 1600),
        (" 0.5 % ", 10),
        ("100%", 2000),
    ],
)
def test_sizes_are_read_as_people_write_them(value: int | str, nbytes: int) -> None:
    assert parse_bytes("host_memory", value, 2000) == nbytes


@pytest.mark.parametrize(
    "value",
    ["", "GB", "0GB", "-1GB", "1.2.3GB", "1GBs", "101%", "0%", "%", "1,5GB", 0, -1, True, 1.5, None, "٣GB", "9" * 5000],
    ids=lambda value: repr(value)[:9],
)
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r'^host_memory: need bytes, or a size as "10GiB" or "1\.8GB", or a share'):
        parse_bytes("host_memory", value, 2000)


@pytest.mark.parametrize("value", [8, "8", " 16.5 ", 4095])
def test_so_few_bytes_that_a_unit_was_forgotten_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^host_memory: a number without a unit is in bytes, and .* add the unit"):
        parse_bytes("host_memory", value, 2000)


def test_settings_are_taken_under_the_other_names_that_people_know_them_by() -> None:
    config = Config(device="gpu", dtype="bf16", chunk_bytes="1MiB")
    assert (config.device, config.dtype, config.reading["chunk_bytes"]) == ("cuda", "bfloat16", 1 << 20)
    assert Config(gpu_groups=numpy.int64(6), residency=numpy.False_) == Config(gpu_groups=6, residency=False)
    assert [Config(device=name).device for name in ("cuda:0", "gpu:0", "cpu")] == ["cuda", "cuda", "cpu"]


def plan(host: int, device: int) -> MemoryPlan:
    holdings = (
        Holding("4 slots", "host", 2 * GIGABYTE, "host_groups"),
        Holding("KV cache", "device", 5 * GIGABYTE, "context_tokens"),
        Holding("2 slots", "device", 3 * GIGABYTE, "gpu_groups"),
        Holding("rows", "host", GIGABYTE, "max_tokens_per_pass"),
    )
    return MemoryPlan(holdings, {"host": host, "device": device})


def test_a_plan_that_just_fits_passes() -> None:
    assert plan(3 * GIGABYTE, 8 * GIGABYTE).fits()


def test_a_plan_that_cannot_fit_names_the_place_need_have_and_who_holds_what() -> None:
    assert plan(3 * GIGABYTE - 1, 100 * GIGABYTE).shortage() == (
        "host memory: need 3 GB, have 3 GB, 1 B too little "
        "(4 slots 2 GB [host_groups]; rows 1 GB [max_tokens_per_pass])"
    )
    assert not plan(3 * GIGABYTE - 1, 100 * GIGABYTE).fits()
    assert plan(100 * GIGABYTE, 7 * GIGABYTE).shortage().startswith("device memory: need 8 GB, have 7 GB ")


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
        ("0::/\n", {"../../../proc/sys/vm/overcommit_memory": "0\n"}, MACHINE_BYTES),
        ("0::/\n", {"../../../proc/sys/vm/overcommit_memory": "2\n"}, 3_072_000 * 1024),
        ("0::/a/b\n", {"a/b/memory.max": "900\n", "a/b/memory.current": "200\n", "memory.max": "5\n"}, 700),
        ("9:name=systemd:/x\n4:memory:/y\n0::/a\n", {"a/memory.max": "90\n", "a/memory.current": "20\n"}, 70),
        ("9:name=systemd:/x\n4:memory:/y\n", {"y/memory.max": "90\n", "y/memory.current": "20\n"}, MACHINE_BYTES),
        (
            "0::/\n",
            {"memory.max": "90\n", "memory.current": "60\n", "memory.stat": "anon 20\ninactive_file 30\n"},
            60,
        ),
        (
            "4:memory:/y\n0::/\n",
            {"memory/y/memory.limit_in_bytes": "90\n", "memory/y/memory.usage_in_bytes": "20\n"},
            70,
        ),
        (
            "4:memory:/of/the/host\n",
            {"memory/memory.limit_in_bytes": "90\n", "memory/memory.usage_in_bytes": "20\n"},
            70,
        ),
    ],
)
def test_the_control_group_bounds_what_the_machine_has(
    cgroup: str, files: dict[str, str], available: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(proc, "PROC", tmp_path / "proc")
    monkeypatch.setattr(proc, "CONTROL_GROUPS", tmp_path / "sys/fs/cgroup")
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


@pytest.mark.usefixtures("everything_moves")
@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_plan_is_what_the_device_hands_out(device: str, settings: dict[str, Any], checkpoint: Path) -> None:
    runtime = build(checkpoint, Config(device=device, **settings))
    assert isinstance(runtime.device, CpuDevice)
    taken = sorted(memory.nbytes for memory in runtime.device._memory)
    other = ("activations", "Python", "kernels")
    held = [holding for holding in runtime.plan.holdings if not holding.holder.startswith(other)]
    assert len(held) == len(runtime.plan.holdings) - 4 - ("dtype" in settings)  # room for casting
    printed = [line.split("B  ")[-1] for line in str(runtime.plan).splitlines() if line.startswith("host ")]
    assert len(set(printed)) == len(printed), "each holder once, also where host and device memory are one"
    assert {holding.place for holding in held} == {"host"} | ({"device"} if device == "cpu-copy" else set())
    assert sum(holding.nbytes for holding in held) == sum(taken)
    several = ("slots", "KV blocks", "choices")
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
    monkeypatch.setattr("pipeline.devices.cpu.available_host_bytes", lambda: 86_000_000)
    monkeypatch.setattr(plan_module, "resident_bytes", lambda: 1_000_000)
    with pytest.raises(
        ConfigError, match=r"^host memory: need .*, have 87 MB .*; set context_tokens to at most 10000$"
    ):
        build(checkpoint, Config(device="cpu", context_tokens=40_000, max_tokens_per_pass=1))
    with pytest.raises(ConfigError, match=r"have 100 kB .*; set host_memory to at least \d+MB$"):
        build(checkpoint, Config(device="cpu", host_memory="100kB"))
    assert taken == []


async def test_limits_decide_where_kv_blocks_live(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Device first, then host memory, then the disk; and what cannot fit is refused with its numbers."""
    monkeypatch.setattr(plan_module, "resident_bytes", lambda: 0)
    settings: dict[str, Any] = {"device": "cpu-copy", "context_tokens": 64, "kv_tokens": 640}
    checkpoint = tmp_path / "model"
    tiny_models.save("llama_gqa_llama3", checkpoint, layers=4)
    room = await asyncio.to_thread(settings_with_room, checkpoint, tmp_path, 2, 2, **settings)
    settings = {name: value for name, value in room.items() if name != "kv_disk"}
    caplog.clear()
    with pytest.raises(ConfigError, match=r"^host memory: need .* have .*KV blocks .* \[kv_tokens, or set kv_disk\]"):
        await asyncio.to_thread(build, checkpoint, Config(**settings))
    runtime = await asyncio.to_thread(build, checkpoint, Config(**room))
    assert runtime.cache.memory.placement.disk
    assert "KV blocks stay on the device in 0 of 4 layers" in caplog.text
    assert "on the disk in" in caplog.text
    assert "disk " in str(runtime.plan)
    await runtime.aclose()
    less = {**room, "gpu_memory": room["gpu_memory"] - 1}
    with pytest.raises(ConfigError, match=r"^device memory: need .* have .*KV blocks: 2 layers take turns"):
        await asyncio.to_thread(build, checkpoint, Config(**less))


def test_settings_of_memory_are_checked_before_any_work(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("gpu_memory", "host_memory"):
        with pytest.raises(ConfigError, match=f"^{name}: need bytes"):
            Config(**{name: "much"})
    with pytest.raises(ConfigError, match=r"kv_disk: need a folder on a disk, have .*nowhere"):
        Config(kv_disk=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="gpu_memory: this device computes in host memory; set host_memory instead"):
        build(checkpoint, Config(device="cpu", gpu_memory="1GB"))
    with pytest.raises(ConfigError, match=r"^host memory: need .*, have 1 MB"):
        build(checkpoint, Config(device="cpu", host_memory="1MB"))
