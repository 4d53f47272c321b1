"""Embedding rows: the right ones, each read once, read again once when the disk fails, and never behind one's back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints.shard import Shard
from pipeline.devices.cpu import CpuDevice
from pipeline.errors import CheckpointError
from pipeline.formats.dense import StoredDense
from pipeline.formats.matrix import Matrix
from pipeline.formats.tensors import TensorRange
from pipeline.reading import kept_table
from pipeline.reading.checksums import Checksums
from pipeline.reading.embedding import EmbeddingRows
from pipeline.reading.reading import Reading
from pipeline.reading.source import CheckpointSource

ROWS, COLUMNS = 50, 24
START = 6000
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}


class ScriptedReader:
    """Each read fills its rows with the rows' numbers, after `before` has been told how many reads there were."""

    def __init__(self, row_bytes: int) -> None:
        self.reads: list[list[int]] = []
        self.before: Callable[[int], Any] = lambda times: None
        self.rotten: dict[int, int] = {}
        self.forgotten: list[list[int]] = []
        self._row_bytes = row_bytes

    async def read(self, file: Path, starts: Sequence[int], row_bytes: int, buffer: memoryview) -> None:
        assert row_bytes == self._row_bytes
        rows = [(start - START) // row_bytes for start in starts]
        self.reads.append(rows)
        if (wait := self.before(len(self.reads))) is not None:
            await wait
        for index, row in enumerate(rows):
            buffer[index * row_bytes :][:row_bytes] = bytes([row ^ self.rotten.get(row, 0)]) * row_bytes

    async def forget(self, file: Path, starts: Sequence[int], row_bytes: int) -> None:
        """What rots in the page cache is whole on the disk; 255 is rotten there too."""
        self.forgotten.append([(start - START) // row_bytes for start in starts])
        self.rotten = {row: value for row, value in self.rotten.items() if value == 255}


def table(file: Path, dtype: str = "BF16") -> StoredDense:
    length = ROWS * COLUMNS * DTYPES[dtype].itemsize
    return StoredDense(
        (TensorRange("embed", "model.embed_tokens.weight", file, START, length, (ROWS, COLUMNS), dtype),)
    )


@asynccontextmanager
async def scripted(most_rows: int = 8) -> AsyncIterator[tuple[ScriptedReader, EmbeddingRows, CpuDevice]]:
    device = CpuDevice(copy=True)
    source = ScriptedReader(COLUMNS * 2)
    checksums = Checksums((), 1, Path("model"))
    yield source, EmbeddingRows(table(Path("weights")), source, device, most_rows, checksums), device  # type: ignore[arg-type]
    await device.aclose()


def bytes_of(rows: Matrix) -> list[list[int]]:
    return [sorted(set(row.tolist())) for row in rows.decoded(torch.bfloat16).view(torch.uint8)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copy", [False, True])
async def test_rows_are_those_of_the_table(dtype: str, copy: bool, tmp_path: Path) -> None:
    weights = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)).to(DTYPES[dtype])
    file = tmp_path / "weights"
    file.write_bytes(b"x" * START + bytes(weights.view(torch.uint8).flatten().tolist()))
    device = CpuDevice(copy=copy)
    shard = Shard(file)
    source = CheckpointSource({}, {file: shard}, Reading())
    embedding = EmbeddingRows(table(file, dtype), source.rows, device, 300)
    many = [index * index % ROWS for index in range(300)]
    for token_ids in ([7], [0, ROWS - 1, 3, 3, 0, 12], [5] * 8, list(range(8)), many, [49]):
        await (await embedding.fetch(token_ids)).wait()
        for first, last in ((0, len(token_ids)), (len(token_ids) // 2, len(token_ids))):
            decoded = embedding.rows(first, last).decoded(DTYPES[dtype])
            assert torch.equal(decoded, weights[token_ids[first:last]])
    await source.aclose()
    shard.close()
    await device.aclose()


async def test_a_token_that_comes_twice_is_read_once_and_all_rows_take_one_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scripted() as (source, embedding, device):
        copies: list[int] = []
        upload = device.upload
        monkeypatch.setattr(device, "upload", lambda *to: (copies.append(len(to[2])), upload(*to))[1])
        await (await embedding.fetch([4, 9, 4, 4, 9, 2])).wait()
        assert source.reads == [[4, 9, 2]]
        assert copies == [1]
        assert bytes_of(embedding.rows(0, 6)) == [[4], [9], [4], [4], [9], [2]]


def fail(*failures: int, error: Exception) -> Callable[[int], None]:
    """The n-th reads fail."""

    def before(times: int) -> None:
        if times in failures:
            raise error

    return before


async def test_a_read_that_fails_once_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted() as (source, embedding, _):
        source.before = fail(1, error=OSError("flaky"))
        await (await embedding.fetch([2, 3, 5])).wait()
        assert source.reads == [[2, 3, 5]] * 2
        assert bytes_of(embedding.rows(0, 3)) == [[2], [3], [5]]
    assert "reading 3 rows of the embedding failed, trying once more: flaky" in caplog.text


async def test_a_read_that_fails_twice_is_the_callers_error_and_the_next_fetch_works() -> None:
    async with scripted() as (source, embedding, _):
        error = OSError("dead")
        source.before = fail(1, 2, error=error)
        with pytest.raises(OSError, match="dead") as caught:
            await embedding.fetch([2, 3, 5])
        assert caught.value is error
        assert source.reads == [[2, 3, 5]] * 2
        await (await embedding.fetch([3])).wait()
        assert bytes_of(embedding.rows(0, 1)) == [[3]]


async def test_a_file_that_has_changed_is_not_read_again() -> None:
    async with scripted() as (source, embedding, _):
        source.before = fail(1, error=CheckpointError("weights changed"))
        with pytest.raises(CheckpointError):
            await embedding.fetch([3])
        assert source.reads == [[3]]


async def test_rows_that_differ_from_their_first_read_are_read_again_from_the_disk(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scripted() as (source, embedding, _):
        await (await embedding.fetch([2, 3, 5])).wait()
        source.rotten = {3: 64}
        await (await embedding.fetch([7, 3])).wait()
        assert source.reads == [[2, 3, 5], [7, 3], [7, 3]]
        assert source.forgotten == [[7, 3]]
        assert bytes_of(embedding.rows(0, 2)) == [[7], [3]]
    assert "the embedding differs from its first read, reading once more" in caplog.text


async def test_rows_that_differ_on_the_disk_are_an_error_and_others_are_none() -> None:
    async with scripted() as (source, embedding, _):
        await (await embedding.fetch([2, 3, 5])).wait()
        source.rotten = {3: 255}
        start = START + 3 * COLUMNS * 2
        with pytest.raises(CheckpointError, match=f"weights changed on disk: bytes {start} to {start + COLUMNS * 2}"):
            await embedding.fetch([7, 3])
        await (await embedding.fetch([2, 7])).wait()
        assert bytes_of(embedding.rows(0, 2)) == [[2], [7]]


async def test_a_cancelled_fetch_uploads_nothing() -> None:
    async with scripted() as (source, embedding, device):
        source.before = lambda times: asyncio.Event().wait()
        fetch = asyncio.ensure_future(embedding.fetch([2, 3, 5]))
        await asyncio.sleep(0.005)
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        assert not any(any(memory.view) for memory in device._memory)


def test_room_is_taken_once_for_the_most_rows() -> None:
    device = CpuDevice()
    embedding = EmbeddingRows(table(Path("weights")), ScriptedReader(48), device, 5)  # type: ignore[arg-type]
    assert embedding.most_rows == 5
    assert [memory.nbytes for memory in device._memory] == [5 * COLUMNS * 2] * 2


class TableReader:
    """A read of several rows from one start gets them all, and fails behind the first `fails_from`."""

    def __init__(self, row_bytes: int) -> None:
        self.reads: list[tuple[int, int]] = []
        self.fails_from = ROWS
        self.failure: Exception = OSError(5, "the disk failed")
        self._row_bytes = row_bytes

    async def read(
        self, file: Path, starts: Sequence[int], nbytes: int, buffer: memoryview, *, once: bool = False
    ) -> None:
        for index, start in enumerate(starts):
            first, count = (start - START) // self._row_bytes, nbytes // self._row_bytes
            if count > 1 and first + count > self.fails_from:
                raise self.failure
            self.reads.append((first, count))
            rows = b"".join(bytes([first + row]) * self._row_bytes for row in range(count))
            buffer[index * nbytes : (index + 1) * nbytes] = rows

    async def forget(self, file: Path, starts: Sequence[int], nbytes: int) -> None:
        """Nothing is cached."""


@pytest.mark.parametrize(
    ("fails_from", "kept", "failure"),
    [(ROWS, ROWS, OSError()), (30, 28, OSError(5, "the disk failed")), (30, 28, MemoryError())],
)
async def test_a_table_that_stays_is_read_once_as_far_as_it_can_be(
    fails_from: int, kept: int, failure: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row_bytes = COLUMNS * 2
    monkeypatch.setattr(kept_table, "CHUNK_BYTES", 7 * row_bytes)
    monkeypatch.setattr(kept_table, "FEW_ROWS", 2)  # which are copied in another way than many
    device, reader = CpuDevice(copy=True), TableReader(row_bytes)
    reader.fails_from, reader.failure = fails_from, failure
    embedding = EmbeddingRows(table(Path("weights")), reader, device, 8, stays=True)  # type: ignore[arg-type]
    loading = asyncio.ensure_future(embedding.load(seen=True))
    await (await embedding.fetch([5])).wait()
    assert reader.reads == [(5, 1)], "the table waits for the end of a pass"
    embedding.may_load()
    await loading
    assert embedding.kept is not None
    assert embedding.kept.rows == kept
    assert embedding.is_seen == (kept == ROWS)
    assert ("not kept in memory from row 28 on" in caplog.text) == (kept < ROWS)
    reader.reads.clear()
    for token_ids, single in (([3, 27, 3, 0], []), ([49, 2], [(49, 1), (2, 1)])):
        await (await embedding.fetch(token_ids)).wait()
        assert bytes_of(embedding.rows(0, len(token_ids))) == [[token_id] for token_id in token_ids]
        assert reader.reads == (single if kept < ROWS else [])
    await device.aclose()
