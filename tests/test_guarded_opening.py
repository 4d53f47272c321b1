"""What is measured, advised or kept when a model is opened makes it faster. Where it fails, the model opens as well."""

import asyncio
import errno
import logging
import mmap
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import Model, Output
from pipeline.reading import reading_choice
from pipeline.system import proc

Break = Callable[[pytest.MonkeyPatch, Path], None]


def refuse(number: int) -> Callable[..., Any]:
    def refusing(*arguments: Any, **named: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refusing


def no_nowait(number: int) -> Break:
    """As overlayfs, tmpfs, NFS and FUSE, which have O_DIRECT, and as a sandbox."""

    def break_it(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        preadv = os.preadv

        def refusing(descriptor: int, buffers: list[memoryview], position: int, flags: int = 0) -> int:
            if flags:
                raise OSError(number, os.strerror(number))
            return preadv(descriptor, buffers, position)

        monkeypatch.setattr(os, "preadv", refusing)

    return break_it


def no_home(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)


def cache_holds(raw: bytes) -> Break:
    def break_it(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        cache.parent.mkdir(parents=True)
        cache.write_bytes(raw)

    return break_it


def cache_is_huge(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.touch()
    os.truncate(cache, 1 << 40)


def cache_is_a_fifo(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    os.mkfifo(cache)


def cache_is_a_folder(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.mkdir(parents=True)


def no_cache_folder(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.parent.parent.parent.mkdir(parents=True, exist_ok=True)
    cache.parent.parent.write_text("a file where a folder should be")


def cache_is_full(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(os, "replace", refuse(errno.ENOSPC))


def no_huge_pages(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)


def no_name_for_huge_pages(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")


def no_advice(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(os, "posix_fadvise", refuse(errno.EPERM))


def no_name_for_advice(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.delattr(os, "posix_fadvise")


def odd_mounts(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A name in Latin-1, one with a separator of lines and one with a space that is none."""
    mounts = b"36 35 98:0 / /mnt\xe9 rw - ext4 /dev/x rw\n37 35 98:1 / /a\xe2\x80\xa8b rw - nfs h\xc2\xa0 rw\n\n"
    proc_holds({"self/mountinfo": mounts})(monkeypatch, cache)


def no_mounts(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    proc_holds({})(monkeypatch, cache)


def a_disk_that_fails(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(reading_choice, "_trial", refuse(errno.EIO))


def a_slow_disk(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(reading_choice, "LONGEST_SECONDS", 0.0)


def no_more_threads(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    start = threading.Thread.start

    def fails(thread: threading.Thread) -> None:
        if "trial" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fails)


def proc_holds(files: dict[str, bytes]) -> Break:
    def break_it(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        folder = cache.parents[1] / "proc"
        (folder / "self").mkdir(parents=True)
        given = {name: (Path("/proc") / name).read_bytes() for name in ("meminfo", "self/statm", "self/cgroup")}
        for name, content in {**given, **files}.items():
            (folder / name).write_bytes(content)
        monkeypatch.setattr(proc, "PROC", folder)
        monkeypatch.setattr(proc, "CONTROL_GROUPS", folder)

    return break_it


def no_proc(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(proc, "PROC", cache / "nothing")


def an_odd_control_group(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    proc_holds({"self/cgroup": b"0::/group\xe2\x80\xa8\xff\n"})(monkeypatch, cache)
    group = proc.CONTROL_GROUPS / os.fsdecode(b"group\xe2\x80\xa8\xff")
    group.mkdir()
    (group / "memory.max").write_text("no number")
    (group / "memory.current").write_text("0")


MEASURED, KEPT, OCCUPIES = "cannot be measured", "cannot be kept", "occupies cannot be read"
COUNTS = [f"what counts for the limit of {what} cannot be read" for what in ("address space .*", "data .*")]
CASES: dict[str, tuple[Break, list[str]]] = {
    **{f"RWF_NOWAIT {errno.errorcode[number]}": (no_nowait(number), ["RWF_NOWAIT.*direct_reads=False"])
       for number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EINVAL)},
    "no home": (no_home, ["no folder for caches: Could not determine .*set XDG_CACHE_HOME"]),
    "cache of bytes": (cache_holds(b"\xff\xfe"), ["reading.json: cannot be used: .*delete it"]),
    "cache of JSON": (cache_holds(b"[]"), ["reading.json: cannot be used"]),
    "cache of another kind": (cache_holds(b'{"version": 2, "disks": 7}'), ["reading.json: cannot be used"]),
    "cache deeply nested": (cache_holds(b'{"a":' * 100_000), ["reading.json: cannot be used"]),
    "huge cache": (cache_is_huge, ["reading.json: cannot be used: .*need at most"]),
    "FIFO as cache": (cache_is_a_fifo, ["reading.json: cannot be used", KEPT]),
    "folder as cache": (cache_is_a_folder, ["reading.json: cannot be used", KEPT]),
    "no cache folder": (no_cache_folder, [f"{KEPT}.*set XDG_CACHE_HOME"]),
    "full disk of the cache": (cache_is_full, [f"{KEPT}.*No space left"]),
    "no huge pages": (no_huge_pages, ["huge pages cannot be asked for: .*Invalid argument.*doctor"]),
    "huge pages without a name": (no_name_for_huge_pages, ["huge pages cannot be asked for"]),
    "no advice": (no_advice, ["the page cache takes no advice: .*not permitted"]),
    "advice without a name": (no_name_for_advice, ["the page cache takes no advice"]),
    "odd mounts": (odd_mounts, []),
    "no mounts": (no_mounts, []),
    "a disk that fails": (a_disk_that_fails, [f"{MEASURED}: .*Input/output error; .*set reader_lanes and chunk_bytes"]),
    "a slow disk": (a_slow_disk, [f"{MEASURED}: the disk gave less than"]),
    "no more threads": (no_more_threads, [f"{MEASURED}: can't start new thread"]),
    "no proc": (no_proc, [OCCUPIES, *COUNTS, "memory is available cannot be read.*set host_memory"]),
    "odd memory": (proc_holds({"meminfo": b"\xff", "self/statm": b"\xff"}),
                   [OCCUPIES, *COUNTS, "memory is available cannot be read"]),
    "odd control groups": (proc_holds({"self/cgroup": b"\xff\n0\n::\n5:memory:/\xff\n0::/../..\n"}), []),
    "limit that is no number": (an_odd_control_group, ["the memory limit cannot be read: .*set host_memory"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def expected() -> Output:
    async def ask() -> Output:
        async with Model.open(device="cpu") as model:
            return await model.generate("class", max_new_tokens=2)

    return asyncio.run(ask())


@pytest.mark.parametrize("case", CASES)
async def test_it_opens_with_the_default_and_one_warning(
    case: str, expected: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(reading_choice, "LEAST_BYTES", 1)
    monkeypatch.setattr(reading_choice, "TRIAL_BYTES", 2 << 20)
    monkeypatch.setattr(reading_choice, "LONGEST_SECONDS", 60.0)
    monkeypatch.setattr(reading_choice, "ROUNDS", 1)
    break_it, warnings = CASES[case]
    break_it(monkeypatch, tmp_path / "caches" / "penstock" / "reading.json")
    with caplog.at_level(logging.WARNING, "penstock"):
        async with Model.open(device="cpu") as model:
            assert await model.generate("class", max_new_tokens=2) == expected
    told = [record.getMessage() for record in caplog.records if "generation_config" not in record.getMessage()]
    assert len(told) == len(warnings), told
    for message, pattern in zip(told, warnings, strict=True):
        assert re.search(pattern, message), told
