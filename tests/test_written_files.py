"""Files that are made here: what is no plain file is never replaced, and a name that cannot be written is refused."""

import gzip
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import ConfigError, Model
from pipeline.cli import main
from pipeline.system.written_files import check_writable, writing

ROOT = Path(__file__).parent.parent
SIMULATE = ["simulate", "--policy", "backpressure", "--layers", "2", "--trace"]


def write(path: Path, content: bytes = b"new") -> None:
    check_writable(path)
    with writing(path) as file:
        file.write(content)


def test_a_plain_file_appears_or_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"first", b"second"):
        with writing(path) as file:
            file.write(content)
            file.flush()
            assert (path.read_bytes() if path.exists() else b"") == (b"first" if content == b"second" else b"")
        assert path.read_bytes() == content
    with pytest.raises(TypeError, match="bytes-like"), writing(path) as file:
        file.writelines([b"third", "half"])  # type: ignore[list-item]
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file"], "and nothing is left beside it"


def test_permissions_stay_and_new_ones_are_those_of_any_file(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("")
    (tmp_path / "old").chmod(0o640)
    (tmp_path / "any").write_text("")
    for name in ("old", "new"):
        write(tmp_path / name)
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_followed_and_stay(exists: bool, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    if exists:
        (tmp_path / "there" / "real").write_text("old")
    (tmp_path / "second").symlink_to("there/real")
    (tmp_path / "first").symlink_to(tmp_path / "second")
    write(tmp_path / "first")
    assert (tmp_path / "there" / "real").read_bytes() == b"new"
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert os.listdir(tmp_path / "there") == ["real"]


def test_the_longest_name_that_the_file_system_takes_is_one(tmp_path: Path) -> None:
    write(tmp_path / ("n" * 255))
    assert (tmp_path / ("n" * 255)).read_bytes() == b"new"


def test_a_device_that_swallows_all_is_written_into_and_stays() -> None:
    before = os.stat("/dev/null")
    write(Path("/dev/null"))
    assert os.stat("/dev/null").st_rdev == before.st_rdev


def test_a_trace_into_a_device_node_leaves_the_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = tmp_path / "null"
    try:
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.close(os.open(node, os.O_WRONLY))
    except PermissionError:
        pytest.skip("making a device node needs root, and a file system that allows it")
    assert main([*SIMULATE, str(node)]) == 0
    assert stat.S_ISCHR(node.lstat().st_mode)
    assert capsys.readouterr().err == ""


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def link_to_a_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to("fifo")


@pytest.mark.parametrize("make", [fifo, unix_socket, loop, link_to_a_fifo, Path.mkdir])
@pytest.mark.parametrize("command", [SIMULATE, ["report", str(ROOT / "README.md"), "-o"]], ids=["trace", "report"])
def test_what_is_no_plain_file_is_refused_before_the_work(
    make: Callable[[Path], object], command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd"
    make(path)
    before = path.lstat()
    assert main([*command, str(path)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert f"penstock: {tmp_path}" in told.err
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    with pytest.raises((ConfigError, OSError)), writing(path):
        raise AssertionError("there is nothing to write into")


@pytest.mark.parametrize("target", ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"])
@pytest.mark.parametrize("into", ["file", "pipe"])
def test_standard_output_gets_the_trace_behind_what_was_printed(target: str, into: str, tmp_path: Path) -> None:
    """Also where it is a file, which is not replaced: the shell has it open."""
    code = "from pathlib import Path; from pipeline.system.written_files import *; print('text'); "
    code += f"check_writable(Path({target!r}))\n"
    code += f"with writing(Path({target!r})) as file: file.write(b'trace')\nprint(' more')"
    with (tmp_path / "out").open("wb") as out:
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=ROOT, stdout=out if into == "file" else subprocess.PIPE, check=True)
    assert (result.stdout or (tmp_path / "out").read_bytes()) == b"text\ntrace more\n"


def test_a_descriptor_for_reading_is_refused() -> None:
    reading, other = os.pipe()
    with pytest.raises(ConfigError, match="is open for reading only"):
        check_writable(Path(f"/dev/fd/{reading}"))
    check_writable(Path(f"/dev/fd/{other}"))
    os.close(reading)
    os.close(other)


def test_a_folder_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder; give the name of a file"):
        check_writable(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere; make it, or write somewhere else"):
        check_writable(tmp_path / "nowhere" / "t.json")
    with pytest.raises(ConfigError, match=r"cannot be written: File name too long"):
        check_writable(tmp_path / ("n" * 256))


def test_no_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder, where the new file is made, whether there is an old one or not."""
    (tmp_path / "old").write_text("")
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    for name in ("old", "new"):
        with pytest.raises(ConfigError, match=r"may not be written: no file can be made in"):
            check_writable(tmp_path / name)


async def test_a_report_that_cannot_be_written_costs_no_generation(tmp_path: Path) -> None:
    async with Model.open() as model:
        with pytest.raises(ConfigError, match="there is no folder"):
            async with model.report(tmp_path / "nowhere" / "r.html"):
                raise AssertionError("the body must not run")


def test_a_compressed_trace_through_a_link_is_whole(tmp_path: Path) -> None:
    (tmp_path / "link.json.gz").symlink_to("real.json.gz")
    assert main([*SIMULATE, str(tmp_path / "link.json.gz")]) == 0
    assert gzip.decompress((tmp_path / "real.json.gz").read_bytes()).endswith(b"]}\n")


def test_traces_of_several_policies_are_made_from_the_name_of_a_plain_file(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "policies", str(ROOT / "pipeline" / "bundled"), "--passes", "1", "--trace", "/dev/null"]
    assert main(command) == 1
    assert "each policy has a trace of its own" in capsys.readouterr().err
