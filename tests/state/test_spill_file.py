"""KV blocks on the disk: what comes back is what was written, or an error; and nothing is left behind."""

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.spill_blocks import BLOCK, BLOCKS, fds, filled, runs

from actors.core.ports import Copy
from pipeline.errors import PenstockError
from pipeline.state import spill_file
from pipeline.state.spill_file import Region, SpillError, SpillFile

FIRST, ODD = (Region(first * BLOCK, BLOCK, "KV block") for first in (0, 1))
SECOND = Region(BLOCKS * BLOCK, BLOCK // 2, "KV block")
"""Of another layer, whose cells have another size."""


@pytest.fixture
async def spill(tmp_path: Path, loop_stays_free: None) -> AsyncIterator[SpillFile]:
    spill = SpillFile(tmp_path, 2 * BLOCKS * BLOCK)
    yield spill
    spill.close()


async def test_what_was_written_comes_back_and_nothing_beside_it(
    spill: SpillFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill_file, "CHUNK_BYTES", 3 * BLOCK)
    first, second, back = filled(1), filled(2), filled(3)
    before = bytes(back.view)
    await asyncio.gather(
        spill.write(FIRST, runs((0, BLOCKS)), first.view),
        spill.write(SECOND, runs((0, 11), (20, 21)), second.view),
    )
    await spill.read(FIRST, runs((2, 9), (30, 31)), back.view)
    assert back.view[2 * BLOCK : 9 * BLOCK] == first.view[2 * BLOCK : 9 * BLOCK]
    assert back.view[30 * BLOCK : 31 * BLOCK] == first.view[30 * BLOCK : 31 * BLOCK]
    for begin, end in ((0, 2), (9, 30), (31, BLOCKS)):
        assert back.view[begin * BLOCK : end * BLOCK] == before[begin * BLOCK : end * BLOCK]
    await spill.read(SECOND, runs((0, 11), (20, 21)), back.view)
    assert back.view[: 11 * BLOCK] == second.view[: 11 * BLOCK]
    await spill.write(FIRST, runs((4, 5)), second.view)
    await spill.read(FIRST, runs((3, 6)), back.view)
    assert back.view[4 * BLOCK : 5 * BLOCK] == second.view[4 * BLOCK : 5 * BLOCK]
    assert back.view[5 * BLOCK : 6 * BLOCK] == first.view[5 * BLOCK : 6 * BLOCK]
    assert spill.bytes_written == (BLOCKS + 12 + 1) * BLOCK
    assert spill.bytes_read == (8 + 12 + 3) * BLOCK
    await spill.read(FIRST, [], back.view)


@pytest.mark.parametrize("block", [0, 7, BLOCKS - 1])
async def test_a_flipped_bit_is_found_wherever_it_is(spill: SpillFile, block: int) -> None:
    memory = filled(1)
    await spill.write(ODD, runs((0, BLOCKS)), memory.view)
    place = (1 + block) * BLOCK + 4096
    with open(f"/proc/self/fd/{spill._descriptor}", "r+b", buffering=0) as file:  # past O_DIRECT and its alignment
        byte = os.pread(file.fileno(), 1, place)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 4]), place)
        os.fsync(file.fileno())
    with pytest.raises(SpillError, match=rf"KV block at byte {(1 + block) * BLOCK}: need checksum 0x.*other bytes"):
        await spill.read(ODD, runs((0, BLOCKS)), memory.view)
    others = [one for one in range(BLOCKS) if one != block]
    await spill.read(ODD, runs(*((one, one + 1) for one in others)), memory.view)
    await spill.write(ODD, runs((block, block + 1)), memory.view)
    await spill.read(ODD, runs((0, BLOCKS)), memory.view)


async def test_a_block_that_was_never_written_is_not_trusted(spill: SpillFile) -> None:
    with pytest.raises(PenstockError, match="need checksum 0x00000000"):
        await spill.read(FIRST, runs((0, 1)), filled(1).view)


@pytest.mark.parametrize("call", ["preadv", "pwritev"])
async def test_too_few_bytes_are_an_error(spill: SpillFile, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = filled(1)
    await spill.write(FIRST, runs((0, BLOCKS)), memory.view)
    real = getattr(os, call)
    monkeypatch.setattr(os, call, lambda fd, pieces, offset: real(fd, [pieces[0][:4096]], offset))
    with pytest.raises(OSError, match=r"(need|of) 327680 .*4096|4096 of 327680") as caught:
        await (spill.read if call == "preadv" else spill.write)(FIRST, runs((0, BLOCKS)), memory.view)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("call", ["read", "write"])
@pytest.mark.parametrize("cancellations", [1, 3])
async def test_a_cancelled_call_ends_after_its_threads(
    spill: SpillFile, call: str, cancellations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, at_work = filled(1), [0]
    await spill.write(FIRST, runs((0, BLOCKS)), memory.view)
    monkeypatch.setattr(spill_file, "CHUNK_BYTES", 4 * BLOCK)
    name = f"_{call}"
    work = getattr(SpillFile, name)
    lock = threading.Lock()

    def slow(*arguments: Any) -> None:
        with lock:
            at_work[0] += 1
        time.sleep(0.02)
        work(*arguments)
        with lock:
            at_work[0] -= 1

    monkeypatch.setattr(SpillFile, name, slow)
    running = asyncio.create_task(getattr(spill, call)(FIRST, runs((0, BLOCKS)), memory.view))
    for _ in range(cancellations):
        await asyncio.sleep(0.005)
        assert not running.done()
        running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert at_work == [0]
    memory.view[:] = bytes(len(memory.view))
    await asyncio.sleep(0.05)
    assert not any(memory.view), "nobody touches it any more"


async def test_an_error_comes_only_when_all_threads_are_through(
    spill: SpillFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, ended = filled(1), []
    monkeypatch.setattr(spill_file, "CHUNK_BYTES", 10 * BLOCK)

    def work(self: SpillFile, region: Region, run: Copy, buffer: memoryview) -> None:
        if run.source_offset == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        time.sleep(0.03)
        ended.append(run.source_offset)

    monkeypatch.setattr(SpillFile, "_write", work)
    with pytest.raises(OSError, match="No space left"):
        await spill.write(FIRST, runs((0, BLOCKS)), memory.view)
    assert sorted(ended) == [10 * BLOCK, 20 * BLOCK, 30 * BLOCK]
    assert spill.bytes_written == 0


def test_the_file_has_no_name_and_its_room_is_taken_at_once(tmp_path: Path) -> None:
    before = fds()
    spill = SpillFile(tmp_path, 64 * BLOCK)
    status = os.fstat(spill._descriptor)
    assert list(tmp_path.iterdir()) == []
    assert (status.st_size, status.st_nlink, status.st_mode & 0o777) == (64 * BLOCK, 0, 0o600)
    assert status.st_blocks * 512 >= 64 * BLOCK
    spill.close()
    assert fds() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("penstock-kv-disk")]
