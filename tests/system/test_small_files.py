"""The one reader of small files: what it refuses, and that every part of the product goes through it."""

import json
import os
import socket
from pathlib import Path

import pytest

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.errors import CheckpointError
from pipeline.generation.folder import read_tokenizer
from pipeline.models.model_config import read_config, read_generation_defaults
from pipeline.reading.reading_cache import kept
from pipeline.system import small_files
from pipeline.system.small_files import parse_object, read_json_file, read_small_file

READERS = {
    "config.json": read_config,
    "generation_config.json": read_generation_defaults,
    "model.safetensors.index.json": open_checkpoint,
    "tokenizer.json": lambda folder: read_tokenizer(folder, 1000),
    "tokenizer.model": lambda folder: read_tokenizer(folder, 1000),
    "tekken.json": lambda folder: read_tokenizer(folder, 1000),
}
BROKEN = {
    "not JSON": (b"{", "broken JSON: .*line 1 column 2"),
    "not UTF-8": (b'{"\xff": 1}', "broken JSON: .*utf-8"),
    "key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate key 'c'"),
    "half a character": (b'{"\\ud800": 1}', "surrogates not allowed"),
    "deep": (b'{"a":' + b"[" * 100_000, "nested too deeply"),
    "huge number": (b'{"a": ' + b"9" * 5000 + b"}", "broken JSON: .*digit"),
    "many objects": (b'{"a": [' + b"[]," * small_files.MOST_CONTAINERS + b"1]}", "more than 2000000 JSON objects"),
    "many values": (b'{"a": ["aa"' + b',"aa"' * (small_files.MOST_VALUES + 1) + b"]}", "more than 5000000 JSON values"),
    "a list": (b"[1]", "the JSON is not an object but list"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_json_is_refused_with_the_name_of_the_file(what: str, tmp_path: Path) -> None:
    content, says = BROKEN[what]
    (tmp_path / "some.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"some\.json: .*{says}"):
        read_json_file(tmp_path / "some.json", 1 << 30)


def test_numbers_that_are_not_json_are_left_to_whoever_needs_them() -> None:
    assert parse_object(b'{"a": Infinity}', "file") == {"a": float("inf")}


def test_a_file_is_read_up_to_its_limit_and_refused_beyond(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_small_file(path, 5) == b"12345"
    with pytest.raises(CheckpointError, match="is 5 bytes long; need at most 4"):
        read_small_file(path, 4)


def test_a_file_that_says_it_is_empty_is_read_no_further_than_its_limit() -> None:
    """Files of /proc have no size, as a file that grows has the wrong one."""
    with pytest.raises(CheckpointError, match="is 11 bytes long; need at most 10"):
        read_small_file(Path("/proc/self/mountinfo"), 10)


def spoil(path: Path, how: str) -> None:
    match how:
        case "FIFO":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        case "link to nothing":
            path.symlink_to("nothing")
        case "endless":
            path.touch()
            os.truncate(path, 1 << 40)


@pytest.mark.parametrize("how", ["FIFO", "device", "folder", "socket", "link to nothing", "endless"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_of_a_checkpoint_is_refused_at_once(
    name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    spoil(Path(name), how)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        READERS[name](tmp_path)


def test_a_device_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    really_open = os.open

    def open_and_note(path: object, *arguments: int) -> int:
        opened.append(path)
        return really_open(tmp_path, *arguments)

    spoil(tmp_path / "config.json", "device")
    monkeypatch.setattr(os, "open", open_and_note)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_small_file(tmp_path / "config.json", 1000)
    assert opened == []


@pytest.mark.parametrize("how", ["FIFO", "device", "folder", "link to nothing", "endless"])
def test_a_tokenizer_config_that_is_no_file_is_refused(how: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({}))
    spoil(tmp_path / "tokenizer_config.json", how)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        read_tokenizer(tmp_path, 1000)


@pytest.mark.parametrize("how", ["FIFO", "device", "folder", "endless"])
def test_a_cache_that_is_no_file_is_no_cache(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spoil(tmp_path / "reading.json", how)
    assert kept(tmp_path / "reading.json", "disk") is None
    assert "the disk is measured again" in caplog.text
