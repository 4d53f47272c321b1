"""The limit that all arms of a comparison share: what it counts, what it drops, and whom it ends."""

import os
import sys
from pathlib import Path

import pytest

import pipeline.bench.memory_limit as memory_limit
from pipeline.api import BUNDLED
from pipeline.bench.memory_limit import CachedFiles, MemoryLimit, ProgramFailed, run_limited
from pipeline.errors import ConfigError

WEIGHTS = BUNDLED / "model.safetensors"
MEGABYTE = 10**6


def test_systemd_is_asked_for_a_group_without_swap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_limit, "SYSTEMD_RUNS", tmp_path)
    monkeypatch.setattr(memory_limit.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(memory_limit.os, "geteuid", lambda: 1000)
    command = MemoryLimit(1_800_000_000).command(["program", "argument"])
    assert command[:2] == ["systemd-run", "--user"]
    assert {"--scope", "MemoryMax=1800000000", "MemorySwapMax=0"} <= set(command)
    assert command[-3:] == ["--", "program", "argument"]
    monkeypatch.setattr(memory_limit.os, "geteuid", lambda: 0)
    assert "--user" not in MemoryLimit(1_800_000_000).command(["program"])


def test_a_limit_that_nobody_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_limit, "SYSTEMD_RUNS", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"systemd does not run here.*--limit-by watchdog"):
        MemoryLimit(MEGABYTE)
    with pytest.raises(ConfigError, match="--limit-by: need one of systemd, watchdog, have 'ulimit'"):
        MemoryLimit(MEGABYTE, "ulimit")


def test_cached_pages_of_files_are_counted_and_dropped() -> None:
    size = WEIGHTS.stat().st_size
    with CachedFiles([BUNDLED]) as files:
        WEIGHTS.read_bytes()
        had = files.look()
        assert size <= had <= 1.1 * size
        dropped = files.drop(3 * MEGABYTE)
        assert 3 * MEGABYTE <= dropped < size
        assert files.look() == had - dropped
        files.drop_all()
        assert files.look() == 0


MAP = """
import mmap, sys, time
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    for _ in range(6):
        total = 0
        for place in range(0, len(mapped), 1 << 20):
            total += sum(mapped[place : place + (1 << 20) : 4096])
            time.sleep(0.01)
print(total)
"""


async def test_the_watchdog_takes_mapped_pages_too(tmp_path: Path) -> None:
    """Else what maps its files would have all of the machine."""
    size = 64 << 20
    (tmp_path / "weights").write_bytes(bytes(range(256)) * (size // 256))
    with open(tmp_path / "weights", "rb") as file:
        os.fsync(file.fileno())
    command = [sys.executable, "-c", MAP, str(tmp_path / "weights")]
    _, own_and_all = await run_limited(command, MemoryLimit(10**9, "watchdog"), [tmp_path])
    limit = own_and_all - size + (24 << 20)
    printed, most = await run_limited(command, MemoryLimit(limit, "watchdog"), [tmp_path])
    assert printed == "0\n"
    assert own_and_all >= size
    assert most <= limit + (16 << 20), "what it maps between two looks"


READ_SLOWLY = """
import sys, time
with open(sys.argv[1], "rb", buffering=0) as file:
    while file.read(1 << 20):
        time.sleep(0.01)
print("read", file.closed)
time.sleep(0.3)
"""


async def test_the_watchdog_holds_the_page_cache_of_a_program_within_the_limit() -> None:
    limit = MemoryLimit(12 * MEGABYTE, "watchdog")
    command = [sys.executable, "-I", "-S", "-c", READ_SLOWLY, str(WEIGHTS)]
    printed, peak_bytes = await run_limited(command, limit, [BUNDLED])
    assert printed == "read True\n"
    with CachedFiles([BUNDLED]) as files:
        left = files.look()
    assert 0 < left < WEIGHTS.stat().st_size, "some was dropped"
    assert left < limit.nbytes < peak_bytes


async def test_nothing_is_cached_when_a_program_starts_and_without_a_limit_all_may_be() -> None:
    WEIGHTS.read_bytes()
    await run_limited([sys.executable, "-I", "-S", "-c", "pass"], None, [BUNDLED])
    with CachedFiles([BUNDLED]) as files:
        assert files.look() == 0
        await run_limited([sys.executable, "-I", "-S", "-c", READ_SLOWLY, str(WEIGHTS)], None, [BUNDLED])
        assert files.look() > 12 * MEGABYTE, "nearly all: the kernel may take a little back"


async def test_a_program_that_needs_more_than_the_limit_is_ended() -> None:
    command = [sys.executable, "-I", "-S", "-c", "import time; held = b'x' * 80_000_000; time.sleep(60)"]
    with pytest.raises(ProgramFailed, match=r"need at least .* MB, have a limit of 40 MB; raise --memory-limit"):
        await run_limited(command, MemoryLimit(40 * MEGABYTE, "watchdog"), [])


async def test_a_program_that_fails_is_named() -> None:
    with pytest.raises(ProgramFailed, match=r"-m nothing\.of\.this_name: ended with status 1; see above"):
        await run_limited([sys.executable, "-m", "nothing.of.this_name"], None, [])
