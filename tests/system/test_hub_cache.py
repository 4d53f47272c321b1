"""Models in the local Hugging Face cache, by id or by folder, as huggingface_hub lays them out."""

import importlib.util
import runpy
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline import CheckpointError, Model
from pipeline.api import BUNDLED
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.cli import main
from pipeline.system.hub_cache import cache_folder, find_checkpoint

ID = "some-owner/Tiny-1.0"
FOLDER = "models--some-owner--Tiny-1.0"
VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that huggingface_hub would find, and a working folder without models."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home" / "hub"


def fetched(hub: Path, commits: Mapping[str, bool] = {"c0ffee": True}) -> Path:
    """A model of the cache with a snapshot for each commit; those that are true are `main`."""
    repository = hub / FOLDER
    for commit, is_main in commits.items():
        shutil.copytree(BUNDLED, repository / "snapshots" / commit)
        if is_main:
            (repository / "refs").mkdir(exist_ok=True)
            (repository / "refs" / "main").write_text(commit)
    return repository


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "/x"},
        {"XDG_CACHE_HOME": "/x", "HF_HOME": "~/h"},
        {"HF_HOME": "/h/$NAMED", "HUGGINGFACE_HUB_CACHE": "~/old"},
        {"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "~/$NAMED"},
        {"HF_HUB_CACHE": ""},
    ],
    ids=str,
)
def test_the_cache_is_where_huggingface_hub_has_it(
    variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"NAMED": "folder", **variables}.items():
        monkeypatch.setenv(name, value)
    constants = importlib.util.find_spec("huggingface_hub.constants")
    assert constants is not None
    assert constants.origin is not None
    assert cache_folder() == Path(runpy.run_path(constants.origin)["HF_HUB_CACHE"])


async def test_a_model_is_opened_by_its_id_also_when_the_program_moves_on(
    hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repository = fetched(hub, {"c0ffee": True, "0ld": False})
    opening = Model.open(ID, device="cpu")
    monkeypatch.chdir(tmp_path)
    async with opening as model:
        assert model.runtime.folder == repository / "snapshots" / "c0ffee"
        assert (await model.generate("Once", max_new_tokens=1)).token_ids


def test_every_spelling_leads_to_the_snapshot(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = fetched(hub, {"c0ffee": False})
    snapshot = repository / "snapshots" / "c0ffee"
    address = f"https://huggingface.co/{ID}"
    for name in (ID, FOLDER, str(repository), str(snapshot), str(snapshot.parent), address, f"hf.co/{ID}/"):
        assert find_checkpoint(Path(name)) == snapshot, name
    assert main(["verify", ID, "--write"]) == 0
    assert f"{snapshot}/penstock.sha256: written" in capsys.readouterr().out
    rates = ("--disk-gbps", "1", "--h2d-gbps", "1", "--tflops", "1", "--batch-tokens", "1")
    assert main(["simulate", "--model", ID, *rates]) == 0
    Path("some-owner/Tiny-1.0").mkdir(parents=True)
    assert find_checkpoint(Path(ID)) == Path(ID), "local paths win"
    with pytest.raises(CheckpointError, match=rf"cache {hub}, which has {ID}; give"):
        find_checkpoint(Path("some-owner/Tiny-1.1"))


def test_the_bundled_model_has_a_name(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "bundled", "--prompt", "def f(", "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr().out.strip()
    Path("bundled").mkdir()
    assert find_checkpoint(Path("bundled")) == Path("bundled"), "local paths win"


@pytest.mark.parametrize(
    ("commits", "ref", "says"),
    [
        (
            None,
            None,
            r"^some-owner/Tiny-1\.0: no such folder, and no model .* fetch it first: hf download some-owner/Ti",
        ),
        ({}, None, "holds no files of the model; fetch it: hf download some-owner/Tiny-1.0$"),
        ({"a": False, "b": False}, None, "has 2 snapshots, and no refs/main .* give the path of one: .*/a, .*/b$"),
        (None, "gone", "refs/main is 'gone', of which no file is there; fetch it: hf download some-owner/Tiny-1.0$"),
        ({"a": False}, "gone", "refs/main is 'gone', of which no file is there; fetch it: hf download some-owner/Ti"),
        ({"a": False}, "../..", "refs/main is '../..', of which no file is there"),
    ],
)
def test_what_the_cache_has_not_is_refused_with_what_to_do(
    commits: Mapping[str, bool] | None, ref: str | None, says: str, hub: Path
) -> None:
    if commits is not None:
        (hub / FOLDER / "snapshots").mkdir(parents=True)
        fetched(hub, commits)
    if ref is not None:
        (hub / FOLDER / "refs").mkdir(parents=True)
        (hub / FOLDER / "refs" / "main").write_text(ref)
    with pytest.raises(CheckpointError, match=says):
        find_checkpoint(Path(ID))


@pytest.mark.parametrize("has_index", [False, True])
def test_a_snapshot_without_all_its_weights_says_how_to_fetch_them(has_index: bool, hub: Path) -> None:
    snapshot = fetched(hub) / "snapshots" / "c0ffee"
    (snapshot / "model.safetensors").unlink()
    if has_index:
        (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-1.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"; fetch what is missing: hf download some-owner/Tiny-1\.0 --rev"):
        open_checkpoint(snapshot)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "./a/b", "../a", "/a/b", "a/", "x" * 5000, "-a/b", "a/b\0"])
def test_what_is_no_id_stays_the_path_that_it_is(name: str, hub: Path) -> None:
    assert find_checkpoint(Path(name), name) == Path(name)


def test_what_may_not_be_looked_into_is_not_said_to_be_missing(hub: Path, tmp_path: Path) -> None:
    (hub / FOLDER).parent.mkdir(parents=True)
    (hub / FOLDER).symlink_to(hub / FOLDER)  # fails for root too, as folders of other users do for others
    with pytest.raises(
        CheckpointError, match=rf"^{ID}: .*{FOLDER}, where the .* has it, cannot be looked into: Too many"
    ):
        find_checkpoint(Path(ID))
    Path("some-owner").symlink_to("some-owner")
    assert find_checkpoint(Path(ID)) == Path(ID)
