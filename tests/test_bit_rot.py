"""Bit rot: weights whose bytes change between passes, with everything that `stat` tells unchanged, are never computed.

Two models on two event loops share the flips. All 1,000 of the record: `PENSTOCK_BIT_FLIPS=1000 pytest
tests/test_bit_rot.py -k every_flip -s`.
"""

import asyncio
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import VOCABULARY_SIZE, save_new

from pipeline import ActorFailed, Model
from pipeline.generation.chunks import Output
from pipeline.reading.reading import WAYS

FLIPS_OF_EACH = int(os.environ.get("PENSTOCK_BIT_FLIPS", "40")) // 4
EVERY_TOKEN = list(range(VOCABULARY_SIZE))
"""A prompt that needs every row of the embedding table."""


VARIANTS = ("llama_gqa_llama3", "qwen2")
"""One with a head of its own, and one whose head is the embedding and whose projections have biases."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    saved = {variant: save_new(variant, tmp_path_factory, layers=2) for variant in VARIANTS}
    for folder in saved.values():
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2 * len(EVERY_TOKEN)}))
    return saved


@pytest.fixture
def folder(folders: dict[str, Path]) -> Path:
    return folders["qwen2"]


@contextmanager
def flipped(file: Path, byte: int, bit: int) -> Iterator[None]:
    """Change one bit of the file, and nothing that tells of it, for the length of the `with`."""
    flip(file, byte, bit)
    yield
    flip(file, byte, bit)


def flip(file: Path, byte: int, bit: int) -> None:
    status = file.stat()
    with file.open("r+b") as opened:
        opened.seek(byte)
        (value,) = opened.read(1)
        opened.seek(byte)
        opened.write(bytes([value ^ 1 << bit]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


async def ask(model: Model, new_tokens: int = 3) -> Output | ActorFailed:
    """The answer to the prompt, or why there is none: a read beside the flip may have seen the time of change too."""
    while True:
        try:
            return await model.generate(EVERY_TOKEN, max_new_tokens=new_tokens, ignore_eos=True)
        except ActorFailed as failed:
            if "weights changed while running" not in str(failed):
                return failed


def data_bytes(file: Path) -> range:
    header = int.from_bytes(file.read_bytes()[:8], "little")
    return range(8 + header, file.stat().st_size)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_every_flip_of_a_bit_is_told_by_layer_group_file_and_tensor(
    folders: dict[str, Path], variant: str, anyio_backend: object
) -> None:
    """Three passes: the first may compute groups that came before the flip, none behind it."""
    folder = folders[variant]
    file, random_flips = folder / "model.safetensors", random.Random(f"{variant} on {anyio_backend}")
    async with Model.open(folder, device="cpu", residency=False) as model:
        expected = await ask(model)
        assert isinstance(expected, Output)
        actors: dict[str, int] = {}
        for _ in range(FLIPS_OF_EACH):
            byte, bit = random_flips.choice(data_bytes(file)), random_flips.randrange(8)
            with flipped(file, byte, bit):
                told = await ask(model)
            assert isinstance(told, ActorFailed), f"byte {byte} bit {bit}: nothing was said"
            assert f"{file}: weights changed on disk: bytes " in str(told)
            first, last = (
                int(word) for word in str(told).split("changed on disk: bytes ")[1].split(",")[0].split(" to ")
            )
            assert first <= byte < last
            actors[told.actor] = actors.get(told.actor, 0) + 1
        assert await ask(model) == expected
        print(f"\n{folder.name}: {FLIPS_OF_EACH} flips, told by {actors}; {model.statistics().checksums}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
async def test_a_flip_is_told_whichever_way_the_disk_is_read(folder: Path, way: str, direct: bool, device: str) -> None:
    file = folder / "model.safetensors"
    settings: dict[str, Any] = {"reader_way": way, "direct_reads": direct, "device": device, "residency": False}
    async with Model.open(folder, **settings) as model:
        expected = await ask(model)
        with flipped(file, data_bytes(file)[-777], 6):
            told = await ask(model)
        assert isinstance(told, ActorFailed)
        assert "weights changed on disk" in str(told)
        assert await ask(model) == expected


async def test_without_checksums_a_flip_changes_the_answer(folder: Path) -> None:
    """What the checksums are for; should this fail, the flips above need not be seen either."""
    file = folder / "model.safetensors"
    async with Model.open(folder, device="cpu", residency=False, checksums=False) as model:
        expected = await ask(model)
        answers = []
        for byte in range(3, 1200, 404):
            with flipped(file, data_bytes(file)[byte], 6):
                answers.append(await ask(model))
        assert any(answer != expected for answer in answers)
        assert model.statistics().checksums.groups == 0


async def test_statistics_tell_what_was_summed_up(folder: Path) -> None:
    async with Model.open(folder, device="cpu", residency=False) as model:
        before = model.statistics()
        await ask(model)
        now = model.statistics()
        assert now.checksums.groups >= now.passes * len(model.runtime.catalog.order)
        assert now.checksums.rows - before.checksums.rows == len(EVERY_TOKEN) + 2
        assert 0 < now.checksums.nbytes <= now.bytes_needed
        assert now.checksums.mismatches == 0


async def test_what_stays_in_memory_is_read_once_and_goes_on_whatever_the_disk_does(folder: Path) -> None:
    file = folder / "model.safetensors"
    async with Model.open(folder, device="cpu") as model:
        expected = await ask(model)
        groups = model.statistics().checksums.groups
        assert groups == len(model.runtime.catalog.order)
        with flipped(file, data_bytes(file)[-777], 6):
            again = await model.generate([1, 2, 3], max_new_tokens=1)
        assert again.token_ids
        assert await ask(model) == expected
        assert model.statistics().checksums.groups == groups


async def test_a_row_that_has_changed_ends_those_who_need_it_and_they_alone(folders: dict[str, Path]) -> None:
    folder = folders["llama_gqa_llama3"]  # whose head does not hold the row, too
    file, bad, good = folder / "model.safetensors", 200, [5, 9, 1]
    async with Model.open(folder, device="cpu", residency=False) as model:
        expected = await model.generate(good, max_new_tokens=30, ignore_eos=True)
        assert bad not in expected.token_ids
        await model.generate([bad], max_new_tokens=1)
        embedding = model.runtime.embedding
        with flipped(file, embedding.parts[0].starts([bad])[0] + 1, 6):
            with suppress(ActorFailed):  # a read beside the flip may have seen the time of change too
                await model.generate(good, max_new_tokens=2)
            crew = model.runtime.line._crew
            well = asyncio.create_task(model.generate(good, max_new_tokens=30, ignore_eos=True))
            with pytest.raises(ActorFailed, match=r"weights changed on disk: .*embed_tokens"):
                await model.generate([bad], max_new_tokens=2)
            assert await well == expected
            assert model.runtime.line._crew is crew, "the line has not been run anew"
        assert await model.generate(good, max_new_tokens=30, ignore_eos=True) == expected
