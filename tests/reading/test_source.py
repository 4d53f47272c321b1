import asyncio
import errno
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from support.weight_files import CHUNKS, GROUP_BYTES, ODD, TAIL_BYTES, Gate, opened, settle

from pipeline.devices.memory import HostMemory
from pipeline.errors import CheckpointError, ClosedError, ConfigError
from pipeline.reading.reading import Reading
from pipeline.system.page_cache import BLOCK_BYTES

pytestmark = pytest.mark.usefixtures("way")


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("chunk_bytes", [BLOCK_BYTES, 4 * BLOCK_BYTES, 1 << 20])
@pytest.mark.parametrize("lanes", [1, 4])
async def test_groups_arrive_byte_for_byte(
    lanes: int, chunk_bytes: int, direct: bool, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, preadv, reads = weights.read_bytes(), os.preadv, list[int]()

    def counted(descriptor: int, buffers: list[memoryview], position: int) -> int:
        reads.append(position)
        return preadv(descriptor, buffers, position)

    monkeypatch.setattr(os, "preadv", counted)
    async with opened(weights, lanes=lanes, chunk_bytes=chunk_bytes, direct=direct) as source:
        for layer in (2, 0, 1):
            slot = HostMemory(GROUP_BYTES + BLOCK_BYTES)
            await source.read_into((layer, "attn"), slot)
            assert slot.view[:GROUP_BYTES] == content[layer * GROUP_BYTES :][:GROUP_BYTES]
            assert slot.view[GROUP_BYTES:] == bytes(BLOCK_BYTES)
        assert source.bytes_read == 3 * GROUP_BYTES
        assert len(reads) == 3 * -(-GROUP_BYTES // chunk_bytes)
        slot = HostMemory(2 * BLOCK_BYTES)
        await source.read_into((3, "ends"), slot)
        assert slot.view[: BLOCK_BYTES + TAIL_BYTES] == content[:BLOCK_BYTES] + content[-TAIL_BYTES:]
        assert source.bytes_read == 3 * GROUP_BYTES + BLOCK_BYTES + TAIL_BYTES
        assert source.bytes_needed == source.bytes_read


@pytest.mark.parametrize("direct", [True, False])
async def test_odd_tensors_are_moved_to_where_they_belong(direct: bool, weights: Path) -> None:
    content = weights.read_bytes()
    async with opened(weights, direct=direct) as source:
        slot = HostMemory(5 * BLOCK_BYTES)
        for _ in range(2):
            await source.read_into((3, "odd"), slot)
            assert all(slot.view[target:][:length] == content[start:][:length] for start, length, target in ODD)


@pytest.mark.parametrize("row_bytes", [1, 10, BLOCK_BYTES, 9000])
async def test_rows_arrive_from_anywhere(row_bytes: int, weights: Path) -> None:
    content = weights.read_bytes()
    random = Random(1)
    starts = [random.randrange(len(content) - row_bytes) for _ in range(40)]
    starts += [len(content) - row_bytes, 0, starts[0], BLOCK_BYTES]
    async with opened(weights) as source:
        rows = memoryview(bytearray(len(starts) * row_bytes + 1))
        await source.rows.read(weights, starts, row_bytes, rows)
        assert rows == b"".join(content[start : start + row_bytes] for start in starts) + b"\0"
        assert source.bytes_needed == len(starts) * row_bytes <= source.bytes_read
        with pytest.raises(CheckpointError, match=f"need bytes {len(content)} to {len(content) + row_bytes}"):
            await source.rows.read(weights, [0, len(content)], row_bytes, rows)


async def test_calls_are_served_in_order(weights: Path, gate: Gate) -> None:
    async with opened(weights, lanes=1) as source:
        calls = [source.read_into((layer, "attn"), HostMemory(GROUP_BYTES)) for layer in (1, 0, 2)]
        await asyncio.gather(*calls)
    assert gate.begun == [layer * GROUP_BYTES + chunk * BLOCK_BYTES for layer in (1, 0, 2) for chunk in range(CHUNKS)]


async def test_a_lane_goes_on_with_the_next_group_while_another_is_still_reading(weights: Path, gate: Gate) -> None:
    last = GROUP_BYTES - BLOCK_BYTES
    gate.hold(last)
    async with opened(weights, lanes=2) as source:
        first = asyncio.ensure_future(source.read_into((0, "attn"), HostMemory(GROUP_BYTES)))
        await gate.until_begun(1)
        await source.read_into((1, "attn"), HostMemory(GROUP_BYTES))
        assert set(gate.ended) == set(range(0, 2 * GROUP_BYTES, BLOCK_BYTES)) - {last}
        assert not first.done()
        gate.open.set()
        await first


async def test_rows_do_not_queue_behind_groups(weights: Path, gate: Gate) -> None:
    gate.hold(0)
    async with opened(weights, lanes=1) as source:
        group = asyncio.ensure_future(source.read_into((0, "attn"), HostMemory(GROUP_BYTES)))
        await gate.until_begun(1)
        await source.rows.read(weights, [BLOCK_BYTES], 10, memoryview(bytearray(10)))
        gate.open.set()
        await group


@pytest.mark.parametrize("cancels", [1, 3])
async def test_cancelling_waits_for_the_threads_and_begins_nothing(cancels: int, weights: Path, gate: Gate) -> None:
    gate.hold()
    async with opened(weights, lanes=2) as source:
        slot = HostMemory(GROUP_BYTES)
        task = asyncio.ensure_future(source.read_into((0, "attn"), slot))
        await gate.until_begun(2)
        for _ in range(cancels):
            task.cancel()
            await settle()
            assert not task.done()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle()
        assert sorted(gate.begun) == sorted(gate.ended) == [0, BLOCK_BYTES]
        await source.read_into((1, "attn"), slot)
        assert slot.view == weights.read_bytes()[GROUP_BYTES:][:GROUP_BYTES]


async def test_a_loop_that_ends_cancels_everything_and_still_waits_for_the_threads(weights: Path, gate: Gate) -> None:
    """What `asyncio.run` does with tasks that are left over: it cancels the inner ones as well."""
    gate.hold()
    async with opened(weights, lanes=2) as source:
        before = asyncio.all_tasks()
        task = asyncio.ensure_future(source.read_into((0, "attn"), HostMemory(GROUP_BYTES)))
        await gate.until_begun(2)
        for inner in asyncio.all_tasks() - before:
            inner.cancel()
        await settle()
        assert not task.done()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(gate.begun) == len(gate.ended) == 2


async def test_cancelling_a_call_that_waits_for_a_lane_is_immediate(weights: Path, gate: Gate) -> None:
    gate.hold()
    async with opened(weights, lanes=1) as source:
        first = asyncio.ensure_future(source.read_into((0, "attn"), HostMemory(GROUP_BYTES)))
        second = asyncio.ensure_future(source.read_into((1, "attn"), HostMemory(GROUP_BYTES)))
        third = asyncio.ensure_future(source.read_into((2, "attn"), HostMemory(GROUP_BYTES)))
        await gate.until_begun(1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.open.set()
        await asyncio.gather(first, third)
        assert not any(GROUP_BYTES <= position < 2 * GROUP_BYTES for position in gate.begun)


async def test_cancelling_at_any_moment_loses_no_lane_and_no_file(weights: Path, gate: Gate) -> None:
    gate.before = lambda position: time.sleep(0.0005)
    for moment in range(40):
        async with opened(weights, lanes=2) as source:
            task = asyncio.ensure_future(source.read_into((0, "attn"), HostMemory(GROUP_BYTES)))
            for _ in range(moment):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert len(gate.begun) == len(gate.ended)
            await source.read_into((0, "attn"), HostMemory(GROUP_BYTES))


async def test_an_error_waits_for_the_other_lanes_and_names_the_place(weights: Path, gate: Gate) -> None:
    bad = GROUP_BYTES + BLOCK_BYTES

    def before(position: int) -> None:
        if position == bad:
            raise OSError(errno.EIO, "Input/output error")
        assert gate.open.wait(10)

    gate.before = before
    async with opened(weights, lanes=2) as source:
        slot = HostMemory(GROUP_BYTES)
        task = asyncio.ensure_future(source.read_into((1, "attn"), slot))
        await gate.until_begun(2)
        await settle()
        assert not task.done()
        gate.open.set()
        with pytest.raises(OSError, match=f"at byte {bad}") as caught:
            await task
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(weights))
        assert sorted(gate.begun) == [bad - 4096, bad, bad], "what failed is tried once more, and nothing else is begun"
        gate.before = lambda position: None
        await source.read_into((1, "attn"), slot)
        assert slot.view == weights.read_bytes()[GROUP_BYTES:][:GROUP_BYTES]


async def test_a_slot_that_cannot_work_is_refused(weights: Path) -> None:
    async with opened(weights) as source:
        with pytest.raises(ConfigError, match=f"need {GROUP_BYTES} bytes, have {GROUP_BYTES - BLOCK_BYTES}"):
            await source.read_into((0, "attn"), HostMemory(GROUP_BYTES - BLOCK_BYTES))
        crooked = HostMemory(GROUP_BYTES + BLOCK_BYTES)
        crooked.view = crooked.view[8:]
        with pytest.raises(ConfigError, match="multiple of 4096"):
            await source.read_into((0, "attn"), crooked)
        assert source.bytes_read == 0
    for options in ({"lanes": 0}, {"chunk_bytes": 0}, {"chunk_bytes": 5000}):
        with pytest.raises(ConfigError, match="lanes="):
            Reading(**options)


async def test_closing_waits_for_reads_and_leaves_nothing_behind(weights: Path, gate: Gate) -> None:
    files = os.listdir("/proc/self/fd")
    gate.hold()
    async with opened(weights, lanes=2) as source:
        task = asyncio.ensure_future(source.read_into((0, "attn"), HostMemory(GROUP_BYTES)))
        await gate.until_begun(2)
        closing = asyncio.gather(source.aclose(), source.aclose())
        await settle()
        assert not closing.done()
        with pytest.raises(ClosedError):
            await source.read_into((0, "attn"), HostMemory(GROUP_BYTES))
        with pytest.raises(ClosedError):
            await source.rows.read(weights, [0], 1, memoryview(bytearray(1)))
        gate.open.set()
        await task
        await closing
        await source.aclose()
        assert len(gate.begun) == len(gate.ended) == CHUNKS
    assert os.listdir("/proc/self/fd") == files
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("penstock-disk")]
