import asyncio
import errno
import fcntl
import logging
import os
from pathlib import Path
from random import Random

import pytest
from support.weight_files import FILE_BYTES, GROUP_BYTES, Gate, opened

from pipeline.checkpoints import shard
from pipeline.devices.memory import HostMemory
from pipeline.errors import CheckpointError
from pipeline.system.page_cache import BLOCK_BYTES, NOT_OFFERED

pytestmark = pytest.mark.usefixtures("way")


async def test_short_reads_are_continued(weights: Path, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    for direct, steps in ((False, (1, 700, 4000)), (True, (BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES - 1))):
        random = Random(0)
        gate.before = lambda position, steps=steps, random=random: random.choice(steps)  # type: ignore[misc]
        async with opened(weights, lanes=2, chunk_bytes=3 * BLOCK_BYTES, direct=direct) as source:
            slot = HostMemory(GROUP_BYTES)
            await source.read_into((1, "attn"), slot)
            assert slot.view == weights.read_bytes()[GROUP_BYTES:][:GROUP_BYTES]
            assert len(gate.begun) > 2
            assert not caplog.records, "direct reads are not given up"


async def test_a_direct_read_that_gets_nowhere_is_an_error(weights: Path, gate: Gate) -> None:
    gate.before = lambda position: 100
    async with opened(weights) as source:
        with pytest.raises(OSError, match="no more bytes"):
            await source.read_into((0, "attn"), HostMemory(GROUP_BYTES))


async def test_a_read_that_failed_is_tried_once_more_and_at_once(
    weights: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[int] = []

    def before(position: int) -> None:
        if failures:
            raise OSError(failures.pop(), "Input/output error")

    gate.before = before
    async with opened(weights, lanes=1) as source:
        slot = HostMemory(GROUP_BYTES)
        failures.append(errno.EIO)
        await source.read_into((1, "attn"), slot)
        assert slot.view == weights.read_bytes()[GROUP_BYTES:][:GROUP_BYTES]
        assert gate.begun[:2] == [GROUP_BYTES, GROUP_BYTES]
        assert caplog.text.count("a read failed, trying once more: [Errno 5]") == 1
        failures.extend([errno.EIO] * 2)
        with pytest.raises(OSError, match="Input/output error"):
            await source.read_into((1, "attn"), slot)
        assert not failures


async def test_lanes_share_the_descriptors_of_a_file_and_need_its_name_no_more(weights: Path) -> None:
    content = weights.read_bytes()
    async with opened(weights, lanes=8) as source:
        files, slots = os.listdir("/proc/self/fd"), [HostMemory(GROUP_BYTES) for _ in range(3)]
        weights.unlink()
        os.mkfifo(weights)
        await asyncio.gather(*(source.read_into((layer, "attn"), slot) for layer, slot in enumerate(slots)))
        await source.rows.read(weights, [7], 10, row := memoryview(bytearray(10)))
        assert b"".join(slot.view for slot in slots) == content[: 3 * GROUP_BYTES]
        assert row == content[7:17]
        assert os.listdir("/proc/self/fd") == files


async def test_a_file_truncated_while_running_gives_an_error_and_never_zeros(weights: Path, gate: Gate) -> None:
    async with opened(weights, lanes=1) as source:
        await source.read_into((0, "attn"), HostMemory(GROUP_BYTES))
        os.truncate(weights, 2 * GROUP_BYTES + 100)
        with pytest.raises(CheckpointError) as caught:
            await source.read_into((2, "attn"), HostMemory(GROUP_BYTES))
        assert str(caught.value) == (
            f"{weights}: truncated while running, seen at byte {2 * GROUP_BYTES}: "
            f"need {FILE_BYTES} bytes, have {2 * GROUP_BYTES + 100}"
        )
        with pytest.raises(CheckpointError, match="truncated while running"):
            await source.read_into((0, "attn"), HostMemory(GROUP_BYTES))


@pytest.mark.parametrize("after_first_read", [True, False])
async def test_a_file_rewritten_in_place_is_noticed(after_first_read: bool, weights: Path) -> None:
    async with opened(weights, lanes=1) as source:
        if after_first_read:
            await source.read_into((0, "attn"), HostMemory(GROUP_BYTES))
        with open(weights, "r+b") as file:
            file.write(b"other")
        with pytest.raises(CheckpointError, match=f"{weights}: weights changed while running"):
            await source.read_into((0, "attn"), HostMemory(GROUP_BYTES))


async def test_a_replaced_file_is_read_on_from_the_old_handle_with_one_warning(
    weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = weights.read_bytes()
    async with opened(weights, lanes=1) as source:
        slot = HostMemory(GROUP_BYTES)
        await source.read_into((0, "attn"), slot)
        other = weights.with_name("other")
        other.write_bytes(bytes(len(content)))
        os.replace(other, weights)
        for layer in range(3):
            await source.read_into((layer, "attn"), slot)
            assert slot.view == content[layer * GROUP_BYTES :][:GROUP_BYTES]
        assert [record.message for record in caplog.records if "replaced" in record.message] == [
            f"{weights}: was deleted or replaced; going on with the file as it was opened"
        ]
    async with opened(weights) as source:
        await source.read_into((0, "attn"), slot)
        assert slot.view == bytes(GROUP_BYTES)


@pytest.mark.parametrize("when", ["open", "read"])
@pytest.mark.parametrize("number", sorted(NOT_OFFERED))
async def test_a_file_system_without_direct_reads_is_read_through_the_cache_with_one_warning(
    number: int, when: str, weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    preadv, open_direct = os.preadv, shard.open_direct

    def no_direct(descriptor: int, buffers: list[memoryview], position: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(number, os.strerror(number))
        return preadv(descriptor, buffers, position)

    def refuse(file: Path) -> int:
        if when == "open":
            raise OSError(number, os.strerror(number), str(file))
        return open_direct(file)

    monkeypatch.setattr(shard, "open_direct", refuse)
    monkeypatch.setattr(os, "preadv", no_direct)
    content = weights.read_bytes()
    async with opened(weights) as source:
        slots = [HostMemory(GROUP_BYTES) for _ in range(3)]
        await asyncio.gather(*(source.read_into((layer, "attn"), slot) for layer, slot in enumerate(slots)))
        row = memoryview(bytearray(10))
        await source.rows.read(weights, [7], 10, row)
        assert b"".join(slot.view for slot in slots) == content[: 3 * GROUP_BYTES]
        assert row == content[7:17]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("penstock", logging.WARNING)
    assert f"{weights}: the file system refuses direct reads (O_DIRECT: {os.strerror(number)})" in record.message
