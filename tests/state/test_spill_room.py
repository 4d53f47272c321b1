"""Where KV blocks on the disk get their room: any file system works, with a warning where it offers less."""

import errno
import fcntl
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from support.spill_blocks import BLOCK, fds, filled, runs

from pipeline.errors import ConfigError
from pipeline.state.spill_file import O_TMPFILE, Region, SpillFile
from pipeline.system.page_cache import NOT_OFFERED, O_DIRECT

REGION = Region(0, BLOCK, "KV block")


def refusing(flag: int, number: int, calls: list[int]) -> Any:
    real = os.open

    def opened(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if "kv" in str(path):
            calls.append(flags)
            if flags & flag == flag:
                raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *rest, **named)

    return opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "kv").mkdir()
    return tmp_path / "kv"


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
async def test_without_nameless_files_a_name_is_taken_away_at_once(
    folder: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fds()
    monkeypatch.setattr(os, "open", refusing(O_TMPFILE, number, []))
    spill = SpillFile(folder, 4 * BLOCK)
    assert list(folder.iterdir()) == []
    await spill.write(REGION, runs((0, 4)), filled(1).view)
    spill.close()
    assert fds() - before == set()


@pytest.mark.parametrize("number", sorted(NOT_OFFERED))
@pytest.mark.parametrize("when", ["asked", "written"])
async def test_where_direct_writes_are_refused_it_says_so_and_works(
    when: str, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    control, write = fcntl.fcntl, os.pwritev

    def asked(descriptor: int, what: int, flags: int = 0) -> int:
        if flags & O_DIRECT and when == "asked":
            raise OSError(number, os.strerror(number))
        return control(descriptor, what, flags)

    def written(descriptor: int, buffers: list[Any], position: int) -> int:
        if control(descriptor, fcntl.F_GETFL) & O_DIRECT:
            raise OSError(number, os.strerror(number))
        return write(descriptor, buffers, position)

    monkeypatch.setattr(fcntl, "fcntl", asked)
    monkeypatch.setattr(os, "pwritev", written)
    with caplog.at_level(logging.WARNING, logger="penstock"):
        spill = SpillFile(folder, 4 * BLOCK)
    assert f"kv_disk {folder}: the file system refuses direct writes" in caplog.text
    assert list(folder.iterdir()) == []
    memory, back = filled(1), filled(2)
    await spill.write(REGION, runs((0, 4)), memory.view)
    await spill.read(REGION, runs((0, 4)), back.view)
    assert back.view[: 4 * BLOCK] == memory.view[: 4 * BLOCK]
    spill.close()


def test_room_is_taken_before_direct_writes_are_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library writes single bytes where a file system has no fallocate, which a direct write cannot be."""
    seen: list[int] = []
    monkeypatch.setattr(os, "posix_fallocate", lambda *some: seen.append(fcntl.fcntl(some[0], fcntl.F_GETFL)))
    SpillFile(folder, 4 * BLOCK).close()
    assert not seen[0] & O_DIRECT


@pytest.mark.parametrize("number", sorted(NOT_OFFERED))
def test_where_room_cannot_be_reserved_it_must_be_free_and_that_is_said(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    before = fds()
    monkeypatch.setattr(os, "posix_fallocate", refused)
    with caplog.at_level(logging.WARNING, logger="penstock"):
        spill = SpillFile(folder, 4 * BLOCK)
    assert os.fstat(spill._descriptor).st_size == 4 * BLOCK
    assert f"kv_disk {folder}: the file system cannot reserve room ({os.strerror(number)})" in caplog.text
    spill.close()
    free = os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize
    with pytest.raises(ConfigError, match=rf"need {free + BLOCK} bytes for KV blocks: No space left .*have \d+"):
        SpillFile(folder, free + BLOCK)
    assert fds() == before


@pytest.mark.parametrize("name", ["posix_fallocate", "pwritev"])
def test_an_error_of_the_disk_at_open_is_told_and_leaves_nothing_open(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = fds()
    monkeypatch.setattr(os, name, fails)
    with pytest.raises(ConfigError, match=f"kv_disk {folder}: .*Input/output error"):
        SpillFile(folder, 4 * BLOCK)
    assert fds() == before


def test_without_room_it_is_refused_and_nothing_stays_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = fds()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=rf"kv_disk {folder}: need 32768 bytes for KV blocks: No space left"):
        SpillFile(folder, 4 * BLOCK)
    assert fds() == before
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_takes_no_file_is_refused(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", refusing(0, number, []))
    with pytest.raises(ConfigError, match=rf"kv_disk {folder}: cannot create .*; name a folder on a disk"):
        SpillFile(folder, 4 * BLOCK)
    with pytest.raises(ConfigError, match="cannot create a file there: No such file or directory"):
        SpillFile(folder.parent / "nowhere", 4 * BLOCK)


def test_reads_and_writes_go_past_the_page_cache(folder: Path) -> None:
    spill = SpillFile(folder, 4 * BLOCK)
    assert fcntl.fcntl(spill._descriptor, fcntl.F_GETFL) & O_DIRECT
    spill.close()
