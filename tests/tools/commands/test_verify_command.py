"""`penstock verify` as people use it: what it compares with, where it says that damage is, and its exit status."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.safetensors_files import write_index

from pipeline.cli import main
from pipeline.tools.verify import digests

WEIGHTS = "model.safetensors"
GOOD, DAMAGED, NOTHING = 0, 1, 2


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tools.verify.verify.SAY_SECONDS", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a model"
    folder.mkdir()
    save_file({"a": torch.zeros(3 << 20), "b": torch.ones(1 << 20), "c": torch.ones(5)}, folder / WEIGHTS)
    (folder / "config.json").write_text("{}")
    return folder


def flip(file: Path, byte: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(byte)
        (value,) = opened.read(1)
        opened.seek(byte)
        opened.write(bytes([value ^ 8]))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_weights_of_which_nothing_is_known_are_no_success(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == NOTHING
    out = capsys.readouterr().out
    assert "unknown  model.safetensors" in out
    assert f"`penstock verify '{folder}' --write`" in out, "as a shell takes it"


def test_sums_that_it_wrote_are_compared_later_and_tell_file_bytes_and_tensors(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(folder), "--write"]) == GOOD
    assert main(["verify", str(folder)]) == GOOD
    assert "good     model.safetensors  16.8 MB  penstock.sha256" in capsys.readouterr().out
    flip(folder / WEIGHTS, 9 << 20)
    assert main(["verify", str(folder)]) == DAMAGED
    captured = capsys.readouterr()
    assert "damaged  model.safetensors" in captured.out
    assert "good     config.json" in captured.out
    assert f"{folder / WEIGHTS}: need sha256 " in captured.err
    assert f"have {sha256(folder / WEIGHTS)}; bytes {8 << 20} to {16 << 20} differ, of a, b" in captured.err
    assert "1 of 2 files is damaged: fetch model.safetensors again" in captured.err
    assert main(["verify", str(folder), "--write"]) == DAMAGED, "what is damaged is not written down as good"
    flip(folder / WEIGHTS, 9 << 20)
    assert main(["verify", str(folder)]) == GOOD


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sums_are_those_of_sha256sum_both_ways(folder: Path) -> None:
    main(["verify", str(folder), "--write"])
    checked = subprocess.check_output(["sha256sum", "-c", "--strict", "penstock.sha256"], cwd=folder)
    assert checked == b"config.json: OK\nmodel.safetensors: OK\n"
    (folder / "penstock.sha256").unlink()
    sums = folder.parent / "SHA256SUMS"
    sums.write_bytes(subprocess.check_output(["sha256sum", "-b", f"./{WEIGHTS}"], cwd=folder))
    assert main(["verify", str(folder), "--sums", str(sums)]) == GOOD
    flip(folder / WEIGHTS, 5000)
    assert main(["verify", str(folder), "--sums", str(sums)]) == DAMAGED


def test_sums_can_lie_elsewhere_and_are_said_where_they_cannot_be_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = tmp_path / "sums"
    assert main(["verify", str(folder), "--write", "--sums", str(sums)]) == GOOD
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, "config.json"}
    assert main(["verify", str(folder), "--sums", str(sums)]) == GOOD
    capsys.readouterr()
    assert main(["verify", str(folder), "--write", "--sums", str(tmp_path / "no" / "sums")]) == DAMAGED
    told = capsys.readouterr()
    assert f"there is no folder {tmp_path / 'no'}; make it, or write somewhere else" in told.err
    assert " read" not in told.err, "before the weights are read"


def in_cache(folder: Path, tmp_path: Path) -> Path:
    """The same files as the Hugging Face cache keeps them: blobs by digest, and a snapshot of links."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    config = (folder / "config.json").read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest()
    for name, digest in ((WEIGHTS, sha256(folder / WEIGHTS)), ("config.json", git)):
        shutil.move(folder / name, blobs / digest)
        (snapshot / name).symlink_to(Path("..") / ".." / "blobs" / digest)
    return snapshot


def test_shards_in_folders_below_are_verified_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "shards").mkdir()
    (folder / WEIGHTS).rename(folder / "shards" / "a.safetensors")
    write_index(folder, dict.fromkeys("abc", "shards/a.safetensors"))
    assert main(["verify", str(folder), "--write"]) == GOOD
    assert main(["verify", str(folder)]) == GOOD
    assert "good     shards/a.safetensors" in capsys.readouterr().out
    flip(folder / "shards" / "a.safetensors", 9 << 20)
    assert main(["verify", str(folder)]) == DAMAGED
    assert "fetch shards/a.safetensors again" in capsys.readouterr().err


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_names_of_the_hugging_face_cache_are_digests(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = in_cache(folder, tmp_path)
    assert main(["verify", str(snapshot)]) == GOOD
    assert capsys.readouterr().out.count("the Hugging Face cache") == 2
    flip(snapshot / name, 1)
    assert main(["verify", str(snapshot)]) == DAMAGED
    assert f"damaged  {name}" in capsys.readouterr().out
    (snapshot / name).resolve().unlink()
    assert main(["verify", str(snapshot)]) == DAMAGED
    assert f"{snapshot / name}: is missing" in capsys.readouterr().err


def test_notes_of_a_download_count_until_the_file_is_changed_on_purpose(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    status = (folder / WEIGHTS).stat()
    (notes / f"{WEIGHTS}.metadata").write_text(f"0123\n{sha256(folder / WEIGHTS)}\n{status.st_mtime}\n")
    assert main(["verify", str(folder)]) == GOOD
    assert "the note of its download" in capsys.readouterr().out
    flip(folder / WEIGHTS, 5000)
    os.utime(folder / WEIGHTS, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert main(["verify", str(folder)]) == DAMAGED
    os.utime(folder / WEIGHTS, (0, status.st_mtime + 60))
    assert main(["verify", str(folder)]) == NOTHING


@pytest.mark.parametrize("key", ["modelspec.hash_sha256", "sshs_model_hash"])
def test_a_digest_in_the_header_is_that_of_the_data(key: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    digest = hashlib.sha256(data).hexdigest()
    tensors = {"a": torch.zeros(3 << 20), "b": torch.ones(1 << 20), "c": torch.ones(5)}
    save_file(tensors, folder / WEIGHTS, metadata={key: f"0x{digest}" if key[0] == "m" else digest})
    assert main(["verify", str(folder)]) == GOOD
    assert f"its own header, {key}" in capsys.readouterr().out
    flip(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1)
    assert main(["verify", str(folder)]) == DAMAGED
    assert "need sha256 of the data" in capsys.readouterr().err


def test_a_file_that_the_sums_name_and_that_is_gone_is_damage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", str(folder), "--write"])
    (folder / WEIGHTS).unlink()
    assert main(["verify", str(folder)]) == DAMAGED
    assert f"{folder / WEIGHTS}: is missing" in capsys.readouterr().err


def test_what_is_no_file_is_called_that_and_no_fault_of_the_disk(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["verify", str(folder), "--write"])
    os.mkfifo(folder / "stray")
    assert main(["verify", str(folder)]) == GOOD
    assert "stray" not in capsys.readouterr().out
    os.mkfifo(folder / "other.safetensors")
    assert main(["verify", str(folder)]) == DAMAGED
    told = capsys.readouterr()
    assert "unread   other.safetensors" in told.out
    assert "other.safetensors: is not a regular file" in told.err
    assert "damaged" not in told.out + told.err


def test_a_header_that_rotted_is_damage_though_nothing_is_known(folder: Path) -> None:
    flip(folder / WEIGHTS, 3)
    assert main(["verify", str(folder)]) == DAMAGED


@pytest.mark.parametrize(
    ("sums", "says"),
    [
        ("hello\n", "line 1 is no line of sha256sum"),
        (f"{'0' * 64}  ../model.safetensors\n", "line 1: need a file inside the checkpoint's folder"),
    ],
)
def test_a_file_of_sums_that_is_none_is_refused(
    sums: str, says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "penstock.sha256").write_text(sums)
    assert main(["verify", str(folder)]) == DAMAGED
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--write"]], ids=["compare", "write"])
def test_a_folder_without_weights_is_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["verify", str(tmp_path), *options]) == 1
    assert "has no safetensors files" in capsys.readouterr().err
    assert not (tmp_path / "penstock.sha256").exists()


def test_what_is_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "none")]) == DAMAGED
    assert "no such folder" in capsys.readouterr().err


def test_a_file_is_read_where_direct_reads_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["verify", str(folder), "--write"]) == GOOD

    def refused(path: Path) -> int:
        raise OSError(22, "Invalid argument", str(path))

    monkeypatch.setattr("pipeline.checkpoints.shard.open_direct", refused)
    assert main(["verify", str(folder)]) == GOOD
    flip(folder / WEIGHTS, 5 << 20)
    assert main(["verify", str(folder)]) == DAMAGED


def test_an_interrupted_look_stops_at_the_next_piece(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["verify", str(folder), "--write"])
    monkeypatch.setattr(digests, "PIECE_BYTES", 4096)
    monkeypatch.setattr("pipeline.tools.verify.known.PIECE_BYTES", 4096)

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.tools.commands.progress.Progress.say", lambda *_: interrupted(0, 0))
    assert main(["verify", str(folder)]) == 130


def test_it_says_at_once_what_it_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--write"]) == GOOD
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == [f"looking at {folder}", "0 B of 16.8 MB read"]
