"""What only lanes of threads can do wrong: threads that cannot start, and buffers that idle ones hold on to."""

import asyncio
import mmap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.checkpoints.shard import Shard
from pipeline.groups.layout import Window
from pipeline.reading.preadv_lanes import PreadvLane, PreadvLanes
from pipeline.reading.reading_lane import Disk
from pipeline.system.page_cache import BLOCK_BYTES


@pytest.fixture
def lanes(weights: Path) -> Iterator[PreadvLanes]:
    shard = Shard(weights)
    yield PreadvLanes("penstock-test", 2, Disk({weights: shard}, direct=False))
    shard.close()


async def test_after_a_thread_could_not_start_later_reads_work(
    weights: Path, lanes: PreadvLanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, failures = threading.Thread.start, [1]

    def fails_once(thread: threading.Thread) -> None:
        if failures and thread.name == "penstock-test-1":
            failures.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fails_once)
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with pytest.raises(RuntimeError, match="can't start"):
        await lanes.read([Window(weights, 0, BLOCK_BYTES, 0)], buffer)
    await lanes.read([Window(weights, 0, BLOCK_BYTES, 0)], buffer)
    assert buffer == weights.read_bytes()[:BLOCK_BYTES]
    names = {thread.name for thread in threading.enumerate()}
    assert {"penstock-test-0", "penstock-test-1"} <= names, "the one that could not is there now"
    await lanes.aclose()


async def test_the_error_that_came_first_is_told_though_another_comes_behind_it(
    weights: Path, lanes: PreadvLanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, heard = threading.Barrier(2, timeout=10), threading.Event()

    def fails(lane: PreadvLane, chunk: Window, buffer: memoryview, most: None) -> None:
        both.wait()  # what no lane has begun would be dropped
        if chunk.start == 0:
            raise OSError("came first")
        assert heard.wait(10)
        raise OSError("came behind it")

    monkeypatch.setattr(PreadvLane, "read_chunk", fails)
    monkeypatch.setattr("pipeline.reading.preadv_lanes.foretell", lambda error: heard.set())
    chunks = [Window(weights, offset, BLOCK_BYTES, offset) for offset in (0, BLOCK_BYTES)]
    with pytest.raises(OSError, match="came first"):
        await lanes.read(chunks, memoryview(bytearray(2 * BLOCK_BYTES)))
    await lanes.aclose()


async def test_an_idle_thread_holds_no_buffer(weights: Path, lanes: PreadvLanes) -> None:
    pages = mmap.mmap(-1, BLOCK_BYTES)
    await lanes.read([Window(weights, 0, BLOCK_BYTES, 0)], memoryview(pages))
    for _ in range(1000):
        try:
            pages.close()
            break
        except BufferError:
            await asyncio.sleep(0.001)
    assert pages.closed
    await lanes.aclose()
