"""A guess that cannot be read: its error waits until the guess is decided, and nobody hears of that of a wrong one."""

import asyncio
import errno
import time
from pathlib import Path

import pytest
from support.weight_files import CHUNKS, GROUP_BYTES, Gate, opened, settle

from actors.core.crew import Crew
from actors.core.errors import ActorFailed
from actors.core.expert_guesses import Guess
from actors.core.operation import Operation
from pipeline.devices.memory import HostMemory
from pipeline.reading.source import CheckpointSource
from pipeline.system.page_cache import BLOCK_BYTES

pytestmark = pytest.mark.usefixtures("way")
GROUP, OTHER = (0, "attn"), (1, "attn")
TOLD = f"layer 0 attn could not be read ahead (it was not needed, and is read again when it is): [Errno {errno.EIO}]"


def break_down(gate: Gate) -> None:
    """Let the disk fail to read the second block of a group."""

    def before(position: int) -> None:
        if position == BLOCK_BYTES:
            raise OSError(errno.EIO, "Input/output error")

    gate.before = before


async def read_wrongly(source: CheckpointSource) -> None:
    guess = Guess((0, 0), kept=False)
    perhaps = asyncio.create_task(source.read_while_idle(GROUP, HostMemory(GROUP_BYTES), guess))
    await settle()
    guess.decide(wanted=False)
    await perhaps


@pytest.mark.parametrize("wanted", [True, False])
async def test_its_error_waits_for_the_decision_and_delays_no_other_read(
    wanted: bool, weights: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    break_down(gate)
    over = asyncio.get_running_loop().create_future()
    async with opened(weights, lanes=1) as source:
        slot, guess = HostMemory(GROUP_BYTES), Guess((0, 0), kept=False)
        reading = source.read_while_idle(GROUP, slot, guess)
        perhaps = Operation(Crew(over), time.perf_counter, reading, lambda error: ActorFailed("reader", 0, "", error))
        await gate.until_begun(3)
        await source.read_into(OTHER, HostMemory(GROUP_BYTES))
        assert not perhaps.done()
        assert not over.done(), "the error is foretold"
        guess.decide(wanted=wanted)
        failure = await over
    assert gate.begun[:3] == [0, BLOCK_BYTES, BLOCK_BYTES]
    assert len(gate.begun) == 3 + CHUNKS
    assert source.bytes_needed == GROUP_BYTES
    if wanted:
        assert str(weights) in str(failure)
    else:
        assert failure is None
    told = [message for message in caplog.messages if message.startswith(TOLD)]
    assert [str(weights) in message for message in told] == [True] * (not wanted)


async def test_it_is_told_of_once_and_not_read_ahead_again_before_it_has_been_read(
    weights: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    break_down(gate)
    async with opened(weights, lanes=1) as source:
        for _ in range(3):
            await read_wrongly(source)
        assert len(gate.begun) == 3
        assert caplog.messages[1:] == [message for message in caplog.messages if message.startswith(TOLD)]
        assert len(caplog.messages) == 2, "that it is read once more, and that"
        guess = Guess((0, 0), kept=False)
        perhaps = asyncio.create_task(source.read_while_idle(GROUP, HostMemory(GROUP_BYTES), guess))
        await settle()
        guess.decide(wanted=True)
        with pytest.raises(OSError, match=str(weights)):
            await perhaps
        gate.before = lambda position: None
        slot, guess = HostMemory(GROUP_BYTES), Guess((0, 0), kept=False)
        guess.decide(wanted=True)
        await asyncio.wait_for(source.read_while_idle(GROUP, slot, guess), 5)
        assert bytes(slot.view) == weights.read_bytes()[:GROUP_BYTES]
        perhaps = asyncio.create_task(source.read_while_idle(GROUP, slot, Guess((0, 0), kept=False)))
        await asyncio.wait_for(perhaps, 5)
        assert source.bytes_needed == 2 * GROUP_BYTES


async def test_it_may_be_cancelled_while_it_waits(weights: Path, gate: Gate) -> None:
    break_down(gate)
    async with opened(weights, lanes=1) as source:
        guess = Guess((0, 0), kept=False)
        perhaps = asyncio.create_task(source.read_while_idle(GROUP, HostMemory(GROUP_BYTES), guess))
        await gate.until_begun(3)
        await settle()
        perhaps.cancel()
        await asyncio.wait([perhaps])
        assert perhaps.cancelled()
