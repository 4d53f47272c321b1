"""A weight file is opened once, without waiting for anybody, and stays the one that was opened."""

import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from pipeline.checkpoints import shard
from pipeline.checkpoints.shard import SPARE_DESCRIPTORS, Shard, require_descriptors
from pipeline.errors import CheckpointError, ConfigError


def fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def limited() -> Iterator[int]:
    """A limit of open files as low as it may be with those that are open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(64, len(fds()) + 2 * SPARE_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("direct", "descriptors"), [(True, 2), (False, 1)])
def test_two_descriptors_at_most_are_open_until_closed(direct: bool, descriptors: int, weights: Path) -> None:
    before = fds()
    opened = Shard(weights, direct=direct)
    assert len(fds() - before) == descriptors
    assert (opened.direct is not None) == direct
    opened.close()
    opened.close()
    assert fds() == before


def test_its_first_bytes_are_those_that_were_opened(weights: Path) -> None:
    content = weights.read_bytes()
    with closing(Shard(weights)) as opened:
        weights.rename(weights.with_name("elsewhere"))
        weights.write_bytes(b"another file")
        assert opened.read(7, 100) == content[7:107]
        assert opened.read(0, len(content) + 1) == content


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket", "device"])
def test_what_is_no_regular_file_is_refused_before_it_is_opened(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as some:
            some.bind("x")
    else:
        path.symlink_to("/dev/zero")
    monkeypatch.setattr(os, "open", None)
    with pytest.raises(CheckpointError, match=f"{path}: is not a regular file"):
        Shard(path)


@pytest.mark.parametrize(
    ("opening", "give", "told"),
    [
        (1, os.mkfifo, "is not a regular file"),
        (2, os.mkfifo, ""),
        (2, os.mknod, r"changed while it was opened: need .*; open the model again"),
    ],
)
def test_a_name_that_is_given_away_in_between_is_noticed_and_waits_for_nobody(
    opening: int, give: Callable[[Path], None], told: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.open, [opening]

    def replaces(path: Path, flags: int) -> int:
        left[0] -= 1
        if not left[0]:
            weights.unlink()
            give(weights)
        return real(path, flags)

    before = fds()
    monkeypatch.setattr(os, "open", replaces)
    with pytest.raises(CheckpointError, match=told) if told else nullcontext():
        Shard(weights).close()
    assert fds() == before


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_an_error_of_the_direct_descriptor_is_told_and_leaves_nothing_open(
    number: int, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> int:
        raise OSError(number, os.strerror(number))

    before = fds()
    monkeypatch.setattr(shard, "open_direct", fails)
    with pytest.raises(CheckpointError, match=f"{weights}: cannot be read: {os.strerror(number)}"):
        Shard(weights)
    assert fds() == before


def test_more_files_than_may_be_open_are_refused_with_need_and_have(
    limited: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = len(fds()) - 1
    require_descriptors(tmp_path, limited - opened - SPARE_DESCRIPTORS)
    with pytest.raises(ConfigError) as caught:
        require_descriptors(tmp_path, limited - opened - SPARE_DESCRIPTORS + 1)
    assert str(caught.value).startswith(f"{tmp_path}: need {limited + 1} open files")
    assert f"have a limit of {limited}; raise it with `ulimit -n {limited + 1}`" in str(caught.value)
    monkeypatch.setattr(shard.resource, "getrlimit", lambda which: (limited, limited))
    with pytest.raises(ConfigError, match=f"have a limit of {limited}; raise its hard limit, {limited}, close others"):
        require_descriptors(tmp_path, limited - opened - SPARE_DESCRIPTORS + 1)
    monkeypatch.setattr(shard.resource, "getrlimit", lambda which: (limited + 1, limited + 1))
    require_descriptors(tmp_path, limited - opened - SPARE_DESCRIPTORS + 1)


def test_where_nobody_can_count_open_files_nothing_is_refused(
    limited: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "OPEN_FILES", tmp_path / "nothing")
    require_descriptors(tmp_path, 10 * limited)
