"""Rows through the page cache: from anywhere, whatever a read gives at once, and never behind one's back."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.weight_files import FILE_BYTES, settle

from pipeline.checkpoints.shard import Shard
from pipeline.errors import CheckpointError
from pipeline.reading import rows
from pipeline.reading.reading_lane import Disk
from pipeline.reading.rows import RowReader


@asynccontextmanager
async def opened(file: Path) -> AsyncIterator[RowReader]:
    shard = Shard(file)
    some = RowReader(Disk({file: shard}, direct=True))
    try:
        yield some
    finally:
        await some.aclose()
        shard.close()


def reads(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], int | None]) -> None:
    """Each read asks `before`, on its thread and with its position, how many bytes it may give."""

    preadv = os.preadv

    def scripted(descriptor: int, buffers: list[memoryview], position: int) -> int:
        limit = before(position)
        return preadv(descriptor, [buffers[0][:limit]], position)

    monkeypatch.setattr(os, "preadv", scripted)


async def test_short_reads_are_continued(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads(monkeypatch, lambda position: 3)
    content, buffer = weights.read_bytes(), memoryview(bytearray(20))
    async with opened(weights) as some:
        await some.read(weights, [4090, 17], 10, buffer)
        assert buffer == content[4090:4100] + content[17:27]
        assert some.bytes_read == 20


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="nobody to tell")
@pytest.mark.parametrize("once", [False, True])
async def test_all_rows_are_asked_for_before_the_first_is_waited_for(
    once: bool, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []

    def advise(descriptor: int, start: int, length: int, advice: int) -> None:
        words = {os.POSIX_FADV_WILLNEED: "asked for", os.POSIX_FADV_DONTNEED: "forgotten"}
        told.extend((words[one], start) for one in {advice} & words.keys())

    monkeypatch.setattr(os, "posix_fadvise", advise)
    reads(monkeypatch, lambda position: told.append(("read", position)))
    async with opened(weights) as some:
        await some.read(weights, [70, 20], 10, memoryview(bytearray(20)), once=once)
    forgotten = [("forgotten", 0)] * 2 * once
    assert told == [("asked for", 70), ("asked for", 20), ("read", 70), ("read", 20), *forgotten]


async def test_a_disk_that_fails_is_told_with_the_place(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(position: int) -> None:
        if position == 100:
            raise OSError(5, "Input/output error")

    reads(monkeypatch, fail)
    async with opened(weights) as some:
        with pytest.raises(OSError, match="Input/output error: at byte 100") as caught:
            await some.read(weights, [0, 100], 10, memoryview(bytearray(20)))
        assert caught.value.filename == str(weights)


async def test_a_file_that_gets_shorter_or_changes_is_noticed(weights: Path) -> None:
    buffer = memoryview(bytearray(10))
    async with opened(weights) as some:
        await some.read(weights, [0], 10, buffer)
        os.truncate(weights, 5)
        with pytest.raises(CheckpointError, match="truncated while running"):
            await some.read(weights, [0], 10, buffer)
    weights.write_bytes(bytes(FILE_BYTES))
    async with opened(weights) as some:
        weights.write_bytes(b"x" * FILE_BYTES)
        with pytest.raises(CheckpointError, match="weights changed while running"):
            await some.read(weights, [0], 10, buffer)


@pytest.mark.parametrize("cancels", [1, 3])
async def test_cancelling_waits_for_the_thread(cancels: int, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, begun = threading.Event(), threading.Event()

    def hold(position: int) -> None:
        begun.set()
        assert gate.wait(10)

    reads(monkeypatch, hold)
    async with opened(weights) as some:
        read = asyncio.ensure_future(some.read(weights, [0], 10, memoryview(bytearray(10))))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        for _ in range(cancels):
            read.cancel()
            await settle()
            assert not read.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await read


async def test_closing_waits_for_what_is_in_flight(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def hold(position: int) -> None:
        assert gate.wait(10)

    reads(monkeypatch, hold)
    buffer = memoryview(bytearray(10))
    async with opened(weights) as some:
        read = asyncio.ensure_future(some.read(weights, [7], 10, buffer))
        await settle()
        closing = asyncio.ensure_future(some.aclose())
        await settle()
        assert not closing.done()
        gate.set()
        await asyncio.gather(read, closing)
    assert buffer == weights.read_bytes()[7:17]


async def test_closing_leaves_no_file_and_no_thread(weights: Path) -> None:
    files = os.listdir("/proc/self/fd")
    async with opened(weights) as some:
        await some.read(weights, [0], 10, memoryview(bytearray(10)))
        await some.aclose()
    assert os.listdir("/proc/self/fd") == files
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("penstock-rows")]


async def test_rows_are_forgotten_by_the_whole_blocks_that_hold_them(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel ignores the ends of a piece that cover no whole page."""
    told: list[tuple[int, int, str]] = []
    monkeypatch.setattr(rows, "advise", lambda descriptor, start, length, advice: told.append((start, length, advice)))
    async with opened(weights) as some:
        await some.forget(weights, [5000, 8190], 10)
    assert told == [(4096, 4096, "POSIX_FADV_DONTNEED"), (4096, 8192, "POSIX_FADV_DONTNEED")]
