"""How the disk is best read: what is measured, what is chosen, and what is kept for the next time."""

import asyncio
import errno
import fcntl
import json
import logging
import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.written_models import write_model

from pipeline import Model
from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.checkpoints.shard import Shard
from pipeline.generation import build
from pipeline.reading import reading_cache, reading_choice
from pipeline.reading.reading import MIB, Reading
from pipeline.reading.reading_choice import CANDIDATES, DEFAULT, ReadingChoice, best_reading, choose_reading

FAST = Reading(lanes=2, chunk_bytes=32 * MIB)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Path, Shard]]:
    """A checkpoint of one file that is small for a test, and large enough to be measured; and a cache of its own."""
    monkeypatch.setattr(reading_choice, "LEAST_BYTES", 1 << 20)
    monkeypatch.setattr(reading_choice, "TRIAL_BYTES", 8 << 20)
    monkeypatch.setattr(reading_choice, "LONGEST_SECONDS", 60)  # other programs may keep the disk busy
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(Random(0).randbytes(1 << 20) * 20 + bytes(1234))
    with closing(Shard(path)) as shard:
        yield {path: shard}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which files were measured; two lanes are the best way."""
    asked: list[Path] = []

    async def measure(shard: Shard) -> dict[Reading, float]:
        asked.append(shard.path)
        return {one: 4e9 if one == FAST else 3e9 for one in CANDIDATES}

    monkeypatch.setattr(reading_choice, "_measure", measure)
    return asked


def cache_of(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "penstock" / "reading.json"


def test_the_default_stays_unless_it_is_beaten_by_more_than_chance() -> None:
    buffered = Reading(direct=False)
    assert best_reading({DEFAULT: 3.0e9, FAST: 3.1e9, buffered: 3.6e9}) == DEFAULT
    assert best_reading({DEFAULT: 3.0e9, FAST: 3.2e9, buffered: 3.6e9}) == FAST
    assert best_reading({DEFAULT: 3.0e9, FAST: 3.2e9, buffered: 3.8e9}) == buffered


def test_experts_are_read_by_two_lanes_at_least(files: dict[Path, Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(shard: Shard) -> dict[Reading, float]:
        return {one: 5e9 if one.lanes == 1 else 4e9 if one == FAST else 3e9 for one in CANDIDATES}

    monkeypatch.setattr(reading_choice, "_measure", measure)
    assert choose_reading(files, {}, beside=False, has_experts=False).chosen.lanes == 1
    assert choose_reading(files, {}, beside=False, has_experts=True).chosen == FAST
    assert choose_reading(files, {"lanes": 1}, beside=False, has_experts=True).chosen.lanes == 1


async def test_a_model_says_whether_it_has_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, choose = list[bool](), build.choose_reading

    def note(*given: Any, has_experts: bool, **others: Any) -> ReadingChoice:
        told.append(has_experts)
        return choose(*given, has_experts=has_experts, **others)

    monkeypatch.setattr(build, "choose_reading", note)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 1}
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
    mixture = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    for kind in ("qwen3_moe", "qwen3"):
        folder = tmp_path / kind
        folder.mkdir()
        write_model(folder, {"model_type": kind, **heads, **sizes, **mixture})
        async with Model.open(folder, device="cpu"):
            pass
    assert told == [True, False]


@pytest.mark.parametrize("beside", [False, True])
def test_every_candidate_is_really_measured(beside: bool, files: dict[Path, Shard]) -> None:
    ((path, shard),) = files.items()
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # what is still to be written stays cached, and says nothing of the disk
    choice = choose_reading(files, {}, beside=beside, has_experts=False)
    assert choice.chosen in CANDIDATES
    assert ("beside computing" in choice.why) == beside
    rates = asyncio.run(reading_choice._measure(shard))
    assert list(rates) == list(CANDIDATES)
    assert all(1e6 < rate < 1e12 for rate in rates.values())
    assert not [thread for thread in threading.enumerate() if "trial" in thread.name]


def test_a_page_cache_that_cannot_be_emptied_is_not_taken_for_a_fast_disk(files: dict[Path, Shard]) -> None:
    ((path, shard),) = files.items()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[::4096]) > 0  # what is mapped stays
        assert Reading(direct=False) not in asyncio.run(reading_choice._measure(shard))


def test_a_file_system_without_direct_reads_is_read_through_the_cache(
    files: dict[Path, Shard], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    preadv = os.preadv

    def refuse(descriptor: int, buffers: list[memoryview], position: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return preadv(descriptor, buffers, position)

    monkeypatch.setattr(os, "preadv", refuse)
    choice = choose_reading(files, {}, beside=False, has_experts=False)
    assert not choice.chosen.direct
    assert choice.why == "the file system refuses direct reads"
    assert "refuses direct reads" in caplog.text


@pytest.mark.parametrize(("reads", "measured"), [(0, False), (1, False), (3, True)])
def test_measuring_a_slow_disk_ends_in_time_and_begins_no_further_read(
    reads: int, measured: bool, files: dict[Path, Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first so many reads are fast."""
    preadv, begun = os.preadv, [0]

    def slow(descriptor: int, buffers: list[memoryview], position: int, flags: int = 0) -> int:
        begun[0] += not flags
        if begun[0] > reads:
            time.sleep(0.45)
        return preadv(descriptor, buffers, position, flags)

    monkeypatch.setattr(os, "preadv", slow)
    monkeypatch.setattr(reading_choice, "LONGEST_SECONDS", 0.75)
    choice = choose_reading(files, {"lanes": 3}, beside=False, has_experts=False)
    assert begun[0] < reads + 20, "more than one lane after another begins in that time"
    assert (choice == ReadingChoice(Reading(lanes=3), "the default, for nothing could be measured")) != measured


def test_the_choice_is_kept_for_the_next_time(files: dict[Path, Shard], measured: list[Path], tmp_path: Path) -> None:
    first = choose_reading(files, {}, beside=False, has_experts=False)
    second = choose_reading(files, {}, beside=False, has_experts=False)
    assert first.chosen == second.chosen == FAST
    assert len(measured) == 1
    assert str(first) == (
        "preadv · direct · 2 lanes x 32 MiB: 4.00 GB/s, measured now (aiofiles 3.00, buffered 3.00, 1 lane 3.00)"
    )
    assert "measured before" in second.why
    assert [path.name for path in cache_of(tmp_path).parent.iterdir()] == ["reading.json"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"version": 2}', '{"version": 2, "disks": {"KEY": {"rates": [{"reading": {"way": "x"}}]}}}'],
)
def test_a_cache_that_makes_no_sense_is_told_and_replaced(
    content: str,
    files: dict[Path, Shard],
    measured: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (shard,) = files.values()
    cache = cache_of(tmp_path)
    cache.parent.mkdir(parents=True)
    cache.write_text(content.replace("KEY", reading_cache.disk_key(shard, False)))
    assert choose_reading(files, {}, beside=False, has_experts=False).chosen == FAST
    assert choose_reading(files, {}, beside=False, has_experts=False).chosen == FAST
    assert len(measured) == 1
    assert "cannot be used" in caplog.text


def test_another_version_and_another_disk_are_measured_anew(
    files: dict[Path, Shard], measured: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_reading(files, {}, beside=False, has_experts=False)
    monkeypatch.setattr(reading_choice, "disk_key", lambda shard, beside: "another disk")
    choose_reading(files, {}, beside=False, has_experts=False)
    assert set(json.loads(cache_of(tmp_path).read_text())["disks"]) >= {"another disk"}
    assert len(json.loads(cache_of(tmp_path).read_text())["disks"]) == 2
    monkeypatch.setattr(reading_cache, "VERSION", reading_cache.VERSION + 1)
    choose_reading(files, {}, beside=False, has_experts=False)
    assert len(measured) == 3


def test_where_the_cache_cannot_be_written_a_warning_says_so(
    files: dict[Path, Shard], measured: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert choose_reading(files, {}, beside=False, has_experts=False).chosen == FAST
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize(
    ("given", "reading"),
    [
        ({"lanes": 3}, Reading(lanes=3, chunk_bytes=32 * MIB)),
        ({"way": "aiofiles", "direct": False}, Reading("aiofiles", False, 2, 32 * MIB)),
    ],
)
def test_what_is_given_stays(
    given: dict[str, Any], reading: Reading, files: dict[Path, Shard], measured: list[Path]
) -> None:
    assert choose_reading(files, given, beside=False, has_experts=False).chosen == reading


def test_nothing_is_measured_where_nothing_is_to_choose(
    files: dict[Path, Shard], measured: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_reading(files, {"lanes": 3, "chunk_bytes": 4096}, beside=True, has_experts=False).chosen == Reading(
        lanes=3, chunk_bytes=4096
    )
    monkeypatch.setattr(reading_choice, "LEAST_BYTES", 1 << 30)
    choice = choose_reading(files, {"way": "aiofiles"}, beside=True, has_experts=False)
    assert choice.chosen == Reading(way="aiofiles")
    assert "for few bytes" in choice.why
    assert measured == []


async def test_an_open_model_tells_its_choice(
    measured: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reading_choice, "LEAST_BYTES", 1 << 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "model"
    await asyncio.to_thread(
        make_checkpoint, out, "llama-3.2-1b", layers=1, hidden_size=64, ffn_size=64, vocabulary_size=512
    )
    with caplog.at_level(logging.INFO, "penstock"):
        async with Model.open(out) as model:
            assert model.runtime.source.reading == FAST
            assert model.statistics().reading.startswith("preadv · direct · 2 lanes x 32 MiB: 4.00 GB/s")
    assert "reads preadv · direct · 2 lanes x 32 MiB: 4.00 GB/s" in caplog.text
