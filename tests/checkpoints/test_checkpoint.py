import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.safetensors_files import write_index, write_sharded

from pipeline.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pipeline.checkpoints.shard import FileIdentity
from pipeline.errors import CheckpointError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with one tensor each, "a" of 12 bytes and "b" of 20."""
    write_sharded(tmp_path / "model", [{"a": torch.arange(3.0)}, {"b": torch.arange(5.0)}])
    return tmp_path / "model"


def looked_at(folder: Path | str) -> Checkpoint:
    with open_checkpoint(folder) as checkpoint:
        return checkpoint


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_shards_are_found_through_the_index(folder: Path) -> None:
    checkpoint = looked_at(folder)
    assert {name: entry.file.name for name, entry in checkpoint.tensors.items()} == {"a": FIRST, "b": SECOND}
    for name, shape in (("a", (3,)), ("b", (5,))):
        entry = checkpoint.tensors[name]
        stored = entry.file.read_bytes()[entry.start :][: entry.length]
        assert torch.frombuffer(bytearray(stored), dtype=torch.float32).tolist() == list(range(*shape))
    identities = {path: shard.identity for path, shard in checkpoint.files.items()}
    assert identities == {folder / name: FileIdentity.of(os.stat(folder / name)) for name in (FIRST, SECOND)}


def test_a_single_file_goes_before_an_index(folder: Path) -> None:
    save_file({"c": torch.zeros(2)}, folder / "model.safetensors")
    checkpoint = looked_at(str(folder))
    assert checkpoint.tensors.keys() == {"c"}
    assert checkpoint.files.keys() == {folder / "model.safetensors"}


def test_tensors_that_the_index_leaves_out_are_not_there(folder: Path) -> None:
    write_index(folder, {"b": SECOND})
    assert looked_at(folder).tensors.keys() == {"b"}


def test_links_of_a_plain_name_are_followed_as_the_hub_cache_needs(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots"
    snapshot.mkdir()
    for name in os.listdir(folder):
        (snapshot / name).symlink_to(Path("..") / folder.name / name)
    assert looked_at(snapshot).tensors.keys() == {"a", "b"}


def test_all_bad_shards_are_listed_with_need_and_have(folder: Path) -> None:
    (folder / FIRST).unlink()
    write_index(folder, {"model.norm.weight": FIRST, "b": SECOND})
    size = (folder / SECOND).stat().st_size
    os.truncate(folder / SECOND, size - 1)
    assert refusal(folder).splitlines() == [
        f"{folder / FIRST}: is missing",
        f"{folder / SECOND}: truncated: the header declares {size} bytes, the file has {size - 1}; fetch it again",
    ]


def test_a_missing_shard_of_which_nothing_is_needed_is_only_a_promise(folder: Path) -> None:
    index = {"a": FIRST, "b": SECOND, "mtp.fc.weight": "model-mtp.safetensors"}
    write_index(folder, index)
    checkpoint = looked_at(folder)
    assert checkpoint.promised == {"mtp.fc.weight": folder / "model-mtp.safetensors"}
    assert checkpoint.files.keys() == {folder / FIRST, folder / SECOND}
    write_index(folder, index | {"model.layers.3.mlp.up_proj.weight": "model-mtp.safetensors"})
    assert refusal(folder) == f"{folder / 'model-mtp.safetensors'}: is missing"


def test_what_the_index_promises_and_what_two_shards_hold_is_told(folder: Path) -> None:
    save_file({"a": torch.zeros(3), "b": torch.zeros(5)}, folder / SECOND)
    write_index(folder, {"a": SECOND, "b": FIRST, "x": FIRST, "y": SECOND})
    checkpoint = looked_at(folder)
    assert checkpoint.tensors.keys() == {"a", "b"}
    assert checkpoint.promised == {"x": folder / FIRST, "y": folder / SECOND}
    assert checkpoint.repeated == {"a": folder / SECOND}


def test_shards_may_lie_in_folders_below(folder: Path) -> None:
    (folder / "some" / "shards").mkdir(parents=True)
    (folder / FIRST).rename(folder / "some" / "shards" / FIRST)
    write_index(folder, {"a": f"some/shards/{FIRST}", "b": SECOND})
    assert looked_at(folder).tensors["a"].file == folder / "some" / "shards" / FIRST


@pytest.mark.parametrize("names", [["mine"], ["7B-01-of-03", "7B-02-of-03", "7B-03-of-03"], ["model-00001-of-00001"]])
def test_without_an_index_the_only_files_are_read(names: list[str], tmp_path: Path) -> None:
    for name in names:
        save_file({name: torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    for other in ("consolidated", "consolidated-00001-of-00002", "adapter_model"):
        save_file({other: torch.zeros(2)}, tmp_path / f"{other}.safetensors")
    (tmp_path / "pytorch_model.bin").touch()
    assert looked_at(tmp_path).tensors.keys() == set(names)


@pytest.mark.parametrize(
    "names",
    [["mine", "yours"], ["a-1-of-2", "a-2-of-3", "a-3-of-3"], ["a-1-of-3", "a-2-of-3"], ["a-1-of-2", "b-2-of-2"]],
)
def test_without_an_index_files_that_are_no_whole_set_are_refused(names: list[str], tmp_path: Path) -> None:
    for name in names:
        save_file({name: torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    assert f"have {', '.join(f'{name}.safetensors' for name in names)}; fetch what is missing" in refusal(tmp_path)


def test_the_files_that_the_config_names_go_before_all_others(folder: Path) -> None:
    save_file({"c": torch.zeros(2)}, folder / "model.safetensors")
    save_file({"d": torch.zeros(2)}, folder / "d.safetensors")
    (folder / "model.safetensors.index.json").rename(folder / "my.safetensors.index.json")
    for named, tensors in (("d.safetensors", {"d"}), ("my.safetensors.index.json", {"a", "b"})):
        (folder / "config.json").write_text(json.dumps({"transformers_weights": named}))
        assert looked_at(folder).tensors.keys() == tensors
    for named in ("../model.safetensors", "model.bin", 7):
        (folder / "config.json").write_text(json.dumps({"transformers_weights": named}))
        assert "transformers_weights: need a .safetensors or .safetensors.index.json file" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "shards/../../model.safetensors",
        "shards//model.safetensors",
        "..",
        ".",
        "",
        "a\0b",
        "a\\b",
        "C:a",
        "a\nb",
        "\ud800",
        7,
        None,
        ["a"],
    ],
)
def test_the_index_cannot_name_what_is_outside(name: object, folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder.parent / "model.safetensors")
    write_index(folder, {"a": name, "b": SECOND})
    assert "tensor 'a' is said to lie in" in refusal(folder)


def test_fifos_and_devices_are_refused_without_opening_them(folder: Path) -> None:
    (folder / FIRST).unlink()
    os.mkfifo(folder / FIRST)
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to("/dev/zero")
    told = [f"{folder / name}: is not a regular file; put a plain file there" for name in (FIRST, SECOND)]
    assert refusal(folder).splitlines() == told
    (folder / "model.safetensors.index.json").unlink()
    os.mkfifo(folder / "model.safetensors.index.json")
    assert "index.json: is not a regular file" in refusal(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "broken JSON"),
        ("[]", "not an object"),
        ("{}", "needs a weight_map"),
        ('{"weight_map": {}}', "needs a weight_map"),
        ('{"weight_map": ["a"]}', "needs a weight_map"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "duplicate key 'a'"),
        ('{"weight_map": ' + "[" * 200_000, "nested too deeply"),
    ],
)
def test_a_broken_index_is_refused(index: str, message: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    assert message in refusal(folder)


def test_an_index_of_any_size_is_not_read(folder: Path) -> None:
    os.truncate(folder / "model.safetensors.index.json", 1 << 40)
    assert f"{1 << 40} bytes long" in refusal(folder)


def test_a_folder_without_safetensors_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    assert "nothing: no such folder" in refusal(tmp_path / "nothing")
    assert "it has no files" in refusal(tmp_path)
    (tmp_path / "consolidated.safetensors").touch()
    assert "only consolidated.safetensors, an adapter or Mistral's own format" in refusal(tmp_path)
    for name in ("pytorch_model.bin", "consolidated.00.pth"):
        (tmp_path / name).touch()
    message = refusal(tmp_path)
    assert "only as consolidated.00.pth, pytorch_model.bin" in message
    assert "convert them to safetensors" in message


def test_a_link_to_nothing_is_missing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")
    assert refusal(tmp_path) == f"{tmp_path / 'model.safetensors'}: is missing"


def test_only_headers_are_read(tmp_path: Path) -> None:
    """4 TB of weights, declared over a hole in the file, open at once."""
    header = json.dumps({"a": {"dtype": "BF16", "shape": [1 << 21, 1 << 20], "data_offsets": [0, 1 << 42]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + (1 << 42))
    assert looked_at(tmp_path).tensors["a"].length == 1 << 42
