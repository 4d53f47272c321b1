"""The source sums up what lands: beside its reads, once more where it differs, and an error where it still does."""

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest
from support.weight_files import CHUNKS, GROUP_BYTES, Gate, opened, settle

from actors.core.expert_guesses import Guess
from pipeline.devices.memory import HostMemory
from pipeline.errors import CheckpointError
from pipeline.formats.tensors import TensorRange
from pipeline.groups.groups import WeightGroup
from pipeline.reading import checksums
from pipeline.reading.checksums import Checksums
from pipeline.system.page_cache import BLOCK_BYTES

pytestmark = pytest.mark.usefixtures("way")
GROUP = (1, "attn")
BEGIN, END = GROUP_BYTES + 100, 2 * GROUP_BYTES - 100


@pytest.fixture(autouse=True)
def digest(monkeypatch: pytest.MonkeyPatch) -> "SlowDigest":
    monkeypatch.setattr(checksums, "INLINE_BYTES", 0)
    slow = SlowDigest()
    monkeypatch.setattr(checksums, "_digest", slow)
    return slow


class SlowDigest:
    """Sums up as ever, but only while `may_go_on` is set."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._digest = checksums._digest

    def __call__(self, run: memoryview) -> int:
        self.begun += 1
        assert self.may_go_on.wait(10)
        found = self._digest(run)
        self.ended += 1
        return found


def sums_of(file: Path) -> Checksums:
    """Of one group, whose only tensor leaves 100 bytes at either end of what is read."""
    tensor = TensorRange("q", "model.q", file, BEGIN, END - BEGIN, (END - BEGIN, 1), "F16")
    return Checksums((WeightGroup(*GROUP, (tensor,)),), 2, file.parent)


def flip(file: Path, byte: int) -> None:
    status = file.stat()
    with file.open("r+b") as opened_file:
        opened_file.seek(byte)
        (value,) = opened_file.read(1)
        opened_file.seek(byte)
        opened_file.write(bytes([value ^ 4]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


async def test_chunks_are_summed_up_while_those_behind_them_are_read(
    weights: Path, gate: Gate, digest: SlowDigest
) -> None:
    gate.hold(2 * GROUP_BYTES - BLOCK_BYTES)
    async with opened(weights, sums_of(weights), lanes=2) as source:
        reading = asyncio.ensure_future(source.read_into(GROUP, HostMemory(GROUP_BYTES)))
        while digest.ended < CHUNKS - 1:
            await asyncio.sleep(0.001)
        assert not reading.done()
        gate.open.set()
        await reading
        assert digest.ended == CHUNKS
        assert source.checksums is not None
        assert (source.checksums.groups, source.checksums.nbytes) == (1, END - BEGIN)


async def test_a_read_ends_when_its_last_chunk_is_summed_up_cancelled_or_not(weights: Path, digest: SlowDigest) -> None:
    async with opened(weights, sums_of(weights)) as source:
        for cancelled in (True, False):
            digest.may_go_on.clear()
            reading = asyncio.ensure_future(source.read_into(GROUP, HostMemory(GROUP_BYTES)))
            while digest.begun == digest.ended:
                await asyncio.sleep(0.001)
            if cancelled:
                reading.cancel()
            await settle()
            assert not reading.done()
            digest.may_go_on.set()
            await asyncio.wait([reading])
            assert reading.cancelled() == cancelled
            assert digest.begun == digest.ended
        assert source.checksums is not None
        assert source.checksums.groups == 1, "what nobody waited for is no first read"


async def test_a_group_that_differs_once_is_read_again(
    weights: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    slot, byte = HostMemory(GROUP_BYTES), BEGIN + 5000
    async with opened(weights, sums_of(weights), lanes=1) as source:
        await source.read_into(GROUP, slot)
        expected = bytes(slot.view)
        flip(weights, byte)

        def before(position: int) -> None:
            if gate.begun.count(GROUP_BYTES) == 3 and position == GROUP_BYTES:
                flip(weights, byte)

        gate.before = before
        with caplog.at_level(logging.WARNING, "penstock"):
            await source.read_into(GROUP, slot)
        assert slot.view == expected
        assert source.checksums is not None
        assert source.checksums.mismatches == 1
    assert "layer 1 attn differs from its first read, reading once more" in caplog.text


async def test_a_group_that_still_differs_is_an_error_that_tells_where(weights: Path) -> None:
    async with opened(weights, sums_of(weights)) as source:
        await source.read_into(GROUP, HostMemory(GROUP_BYTES))
        for byte in (GROUP_BYTES + 99, 2 * GROUP_BYTES - 100):  # beside the tensor
            flip(weights, byte)
            await source.read_into(GROUP, HostMemory(GROUP_BYTES))
        flip(weights, END - 1)
        with pytest.raises(
            CheckpointError, match=f"bytes {2 * GROUP_BYTES - BLOCK_BYTES} to {END}, of tensor 'model.q'"
        ):
            await source.read_into(GROUP, HostMemory(GROUP_BYTES))
        flip(weights, END - 1)
        await source.read_into(GROUP, HostMemory(GROUP_BYTES))


async def test_what_is_not_read_whole_is_not_compared(weights: Path, gate: Gate) -> None:
    gate.hold(GROUP_BYTES)
    async with opened(weights, sums_of(weights), lanes=1) as source:
        slot, guess = HostMemory(GROUP_BYTES), Guess((1, 0), kept=False)
        perhaps = asyncio.create_task(source.read_while_idle(GROUP, slot, guess))
        await gate.until_begun(1)
        guess.decide(wanted=False)
        gate.open.set()
        await perhaps
        assert source.checksums is not None
        assert source.checksums.groups == 0
        for _ in range(2):
            await source.read_into(GROUP, slot)
        assert (source.checksums.groups, source.checksums.mismatches) == (2, 0)


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_guess_that_differs_is_an_error_once_it_is_right(
    wanted: bool, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(weights, sums_of(weights)) as source:
        await source.read_into(GROUP, HostMemory(GROUP_BYTES))
        flip(weights, BEGIN)
        guess = Guess((1, 0), kept=False)
        perhaps = asyncio.create_task(source.read_while_idle(GROUP, HostMemory(GROUP_BYTES), guess))
        assert source.checksums is not None
        while source.checksums.mismatches < 2:
            await asyncio.sleep(0.001)
        await settle()
        assert not perhaps.done()
        guess.decide(wanted=wanted)
        (error,) = await asyncio.gather(perhaps, return_exceptions=True)
        assert isinstance(error, CheckpointError) == wanted
    told = [message for message in caplog.messages if "layer 1 attn could not be read ahead" in message]
    assert ["tensor 'model.q'" in message for message in told] == [True] * (not wanted)
