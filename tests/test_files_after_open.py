"""What becomes of a checkpoint's files and names while a model is open, and what of the files that it opened."""

import asyncio
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny_models

from pipeline import ActorFailed, ConfigError, Model, Output

PROMPT = [5, 9, 1, 7]
SETTINGS = {"device": "cpu", "residency": False}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_models.save("llama_mha", folder, shards=3)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def expected(saved: Path) -> Output:
    """What the model says to the prompt."""

    async def ask() -> Output:
        async with Model.open(saved, **SETTINGS) as model:
            return await model.generate(PROMPT, max_new_tokens=8, ignore_eos=True)

    return asyncio.run(ask())


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def rename(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def put_fifos(folder: Path) -> None:
    for path in shards(folder):
        path.unlink()
        os.mkfifo(path)


def put_other_files(folder: Path) -> None:
    for path in shards(folder):
        other = path.with_name("other")
        other.write_bytes(bytes(path.stat().st_size))
        other.replace(path)


def forbid(folder: Path) -> None:
    for path in shards(folder):
        path.chmod(0)


@pytest.mark.parametrize(
    ("reader_way", "change"),
    [
        ("preadv", put_fifos),
        ("aiofiles", put_fifos),
        ("preadv", put_other_files),
        ("aiofiles", delete),
        ("preadv", rename),
        ("aiofiles", forbid),
    ],
)
async def test_names_matter_no_more_once_a_model_is_open(
    reader_way: str, change: Callable[[Path], None], folder: Path, expected: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    async with Model.open(folder.name, reader_way=reader_way, **SETTINGS) as model:
        monkeypatch.chdir("/")
        change(folder)
        for _ in range(2):
            assert await model.generate(PROMPT, max_new_tokens=8, ignore_eos=True) == expected


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


def rewrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("change", [truncate, grow, rewrite])
@pytest.mark.parametrize("direct_reads", [True, False])
async def test_a_file_that_changes_in_place_is_told_and_gives_no_token(
    direct_reads: bool, change: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    async with Model.open(folder.name, direct_reads=direct_reads, **SETTINGS) as model:
        monkeypatch.chdir("/")
        for path in shards(folder):
            change(path)
        for _ in range(2):
            with pytest.raises(ActorFailed, match=f"{folder}/model-0000.*(truncated|changed) while running"):
                await model.generate(PROMPT, max_new_tokens=8, ignore_eos=True)


async def test_closing_leaves_no_file_open_and_neither_does_an_opening_that_fails(folder: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(2):
        async with Model.open(folder, **SETTINGS) as model:
            await model.generate(PROMPT, max_new_tokens=1)
    for settings in ({"host_memory": "1MB"}, {"kv_disk": folder / "config.json"}, {"policy": "nothing"}):
        with pytest.raises(ConfigError):
            await Model.open(folder, **(SETTINGS | settings))
    assert os.listdir("/proc/self/fd") == before


async def test_more_shards_than_files_may_be_open_are_refused_at_open(folder: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    told = rf"model: need \d+ open files \({2 * len(shards(folder))} for the weights, .*ulimit -n"
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 2, before[1]))
    try:
        with pytest.raises(ConfigError, match=told):
            await Model.open(folder, **SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
