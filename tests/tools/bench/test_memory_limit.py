"""The limit that all arms of a comparison share: what it counts, what it drops, and whom it ends."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

import pipeline.tools.bench.limit_holders as limit_holders
from pipeline.api import BUNDLED
from pipeline.errors import ConfigError
from pipeline.system import proc
from pipeline.tools.bench.cached_files import CachedFiles
from pipeline.tools.bench.limit_holders import ControlGroup, SystemdScope
from pipeline.tools.bench.memory_limit import MemoryLimit, ProgramFailed, memory_limit, run_limited

MEGABYTE = 10**6


def write(file: Path, content: bytes) -> None:
    """So that its pages are clean, and can be dropped."""
    with open(file, "wb") as opened:
        opened.write(content)
        os.fsync(opened.fileno())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy: other tests may read the bundled model at the same time."""
    write(tmp_path / "weights", (BUNDLED / "model.safetensors").read_bytes())
    return tmp_path / "weights"


def systemd_runs(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(limit_holders, "SYSTEMD_RUNS", folder)
    monkeypatch.setattr(limit_holders.shutil, "which", lambda name: f"/usr/bin/{name}")


def test_systemd_is_asked_for_a_group_without_swap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    systemd_runs(monkeypatch, tmp_path)
    assert memory_limit(MEGABYTE, None).way == "systemd", "where it runs"
    scope = SystemdScope(1_800_000_000, CachedFiles([]))
    monkeypatch.setattr(limit_holders.os, "geteuid", lambda: 1000)
    command = scope.command(["program", "argument"])
    assert command[:2] == ["systemd-run", "--user"]
    assert {"--scope", "MemoryMax=1800000000", "MemorySwapMax=0"} <= set(command)
    assert command[-3:] == ["--", "program", "argument"]
    monkeypatch.setattr(limit_holders.os, "geteuid", lambda: 0)
    assert "--user" not in scope.command(["program"])


def test_a_limit_that_nobody_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limit_holders, "SYSTEMD_RUNS", tmp_path / "none")
    monkeypatch.setattr(proc, "CONTROL_GROUPS", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no control group can be made here; add --limit-by watchdog"):
        memory_limit(MEGABYTE, None)
    with pytest.raises(ConfigError, match=r"--limit-by systemd: need systemd, which does not run here"):
        MemoryLimit(MEGABYTE, "systemd")
    with pytest.raises(ConfigError, match=r"--limit-by cgroup: need memory control groups of version 1"):
        MemoryLimit(MEGABYTE, "cgroup")
    with pytest.raises(ConfigError, match="--limit-by: need one of systemd, cgroup, watchdog, have 'ulimit'"):
        MemoryLimit(MEGABYTE, "ulimit")


@pytest.mark.skipif(ControlGroup.lacking() is not None, reason=f"needs {ControlGroup.lacking()}")
async def test_the_kernel_counts_cached_pages_and_ends_what_takes_too_much(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(limit_holders, "SYSTEMD_RUNS", tmp_path / "none")
    limit = memory_limit(40 * MEGABYTE, None)
    assert limit.way == "cgroup"
    await asyncio.to_thread(write, tmp_path / "weights", (b"x" * 999 + b"\n") * (60 * MEGABYTE // 1000))
    count = "import sys; print(sum(len(piece) for piece in open(sys.argv[1], 'rb')))"
    program = [sys.executable, "-I", "-S", "-c", count, str(tmp_path / "weights")]
    printed, peak_bytes = await run_limited(program, limit, [tmp_path])
    assert printed == f"{60 * MEGABYTE}\n", "it gets through"
    assert 0.9 * limit.nbytes < peak_bytes <= limit.nbytes, "with what the limit leaves of the page cache"
    with pytest.raises(ProgramFailed, match=r"have a limit of 40 MB; raise --memory-limit"):
        await run_limited([sys.executable, "-I", "-S", "-c", "held = b'x' * 80_000_000"], limit, [])
    assert not list(limit_holders._own_group().glob("penstock-*"))  # type: ignore[union-attr]


def test_cached_pages_of_files_are_counted_and_dropped(weights: Path) -> None:
    size = weights.stat().st_size
    with CachedFiles([weights.parent]) as files:
        weights.read_bytes()
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
    for _ in range(3):
        total = 0
        for place in range(0, len(mapped), 1 << 20):
            total += sum(mapped[place : place + (1 << 20) : 4096])
            time.sleep(0.01)
print(total)
"""


async def test_the_watchdog_takes_mapped_pages_too(tmp_path: Path) -> None:
    """Else what maps its files would have all of the machine."""
    size = 64 << 20
    await asyncio.to_thread(write, tmp_path / "weights", bytes(range(256)) * (size // 256))
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


async def test_the_watchdog_holds_the_page_cache_of_a_program_within_the_limit(weights: Path) -> None:
    limit = MemoryLimit(12 * MEGABYTE, "watchdog")
    command = [sys.executable, "-I", "-S", "-c", READ_SLOWLY, str(weights)]
    printed, peak_bytes = await run_limited(command, limit, [weights.parent])
    assert printed == "read True\n"
    with CachedFiles([weights.parent]) as files:
        left = files.look()
    assert 0 < left < weights.stat().st_size, "some was dropped"
    assert left < limit.nbytes < peak_bytes


async def test_nothing_is_cached_when_a_program_starts_and_without_a_limit_all_may_be(weights: Path) -> None:
    weights.read_bytes()
    await run_limited([sys.executable, "-I", "-S", "-c", "pass"], None, [weights.parent])
    with CachedFiles([weights.parent]) as files:
        assert files.look() == 0
        await run_limited([sys.executable, "-I", "-S", "-c", READ_SLOWLY, str(weights)], None, [weights.parent])
        assert files.look() > 12 * MEGABYTE, "nearly all: the kernel may take a little back"


async def test_a_program_that_needs_more_than_the_limit_is_ended() -> None:
    command = [sys.executable, "-I", "-S", "-c", "import time; held = b'x' * 80_000_000; time.sleep(60)"]
    with pytest.raises(ProgramFailed, match=r"need at least .* MB, have a limit of 40 MB; raise --memory-limit"):
        await run_limited(command, MemoryLimit(40 * MEGABYTE, "watchdog"), [])


async def test_a_program_that_fails_is_named() -> None:
    with pytest.raises(ProgramFailed, match=r"-m nothing\.of\.this_name: ended with status 1; see above"):
        await run_limited([sys.executable, "-m", "nothing.of.this_name"], None, [])
