"""What is perhaps wanted is read while nothing else waits, in steps, and no further once it is not wanted."""

import asyncio
from pathlib import Path

import pytest
from support import weight_files
from support.weight_files import CHUNKS, GROUP_BYTES, Gate, opened, settle

from actors.core.expert_guesses import Guess
from pipeline.devices.memory import HostMemory
from pipeline.reading import reading_lane
from pipeline.system.page_cache import BLOCK_BYTES

pytestmark = pytest.mark.usefixtures("way")
STARTS = [chunk * BLOCK_BYTES for chunk in range(CHUNKS)]


async def test_it_begins_behind_all_that_is_wanted_and_arrives_whole(weights: Path, gate: Gate) -> None:
    gate.hold(GROUP_BYTES)
    async with opened(weights, lanes=1) as source:
        slots, guess = [HostMemory(GROUP_BYTES) for _ in range(2)], Guess((0, 0), kept=False)
        needed = asyncio.create_task(source.read_into((1, "attn"), slots[1]))
        await gate.until_begun(1)
        perhaps = asyncio.create_task(source.read_while_idle((0, "attn"), slots[0], guess))
        await settle()
        assert not guess.begun
        gate.open.set()
        await asyncio.gather(needed, perhaps)
        assert guess.begun
        assert gate.begun == [GROUP_BYTES + start for start in STARTS] + STARTS
        assert bytes(slots[0].view[:GROUP_BYTES]) == weights.read_bytes()[:GROUP_BYTES]
        assert source.bytes_needed == 2 * GROUP_BYTES


async def test_threads_begin_with_one_guess_at_a_time_while_the_last_of_what_is_wanted_is_read(
    weights: Path, gate: Gate
) -> None:
    if weight_files.way != "preadv":
        pytest.skip("the event loop waits until nothing is read")
    gate.hold(GROUP_BYTES, 0)
    async with opened(weights, lanes=4) as source:
        slots = [HostMemory(GROUP_BYTES) for _ in range(3)]
        guesses = [Guess((layer, 0), kept=False) for layer in (0, 2)]
        needed = asyncio.create_task(source.read_into((1, "attn"), slots[1]))
        reads = [
            asyncio.create_task(source.read_while_idle((guess.expert[0], "attn"), slots[guess.expert[0]], guess))
            for guess in guesses
        ]
        await gate.until_begun(CHUNKS + 1)
        await settle()
        assert [guess.begun for guess in guesses] == [True, False]
        guesses[0].decide(wanted=True)
        await reads[1]
        gate.open.set()
        await asyncio.gather(needed, *reads)
        assert source.bytes_needed == 3 * GROUP_BYTES


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
async def test_one_that_is_decided_waits_for_nothing(wanted: bool, before: bool, weights: Path, gate: Gate) -> None:
    """Before its read is asked for, or behind that."""
    gate.hold(GROUP_BYTES)
    async with opened(weights, lanes=8 if wanted else 1) as source:
        slots, guess = [HostMemory(GROUP_BYTES) for _ in range(2)], Guess((0, 0), kept=False)
        needed = asyncio.create_task(source.read_into((1, "attn"), slots[1]))
        await gate.until_begun(1)
        if before:
            guess.decide(wanted=wanted)
        perhaps = asyncio.create_task(source.read_while_idle((0, "attn"), slots[0], guess))
        await settle()
        if not before:
            guess.decide(wanted=wanted)
        await asyncio.wait_for(perhaps, 5)
        assert sorted(set(gate.begun) & set(STARTS)) == (STARTS if wanted else [])
        gate.open.set()
        await needed
        assert source.bytes_needed == GROUP_BYTES * (1 + wanted)


async def test_a_wrong_one_ends_with_the_step_under_way(
    weights: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_lane, "STEP_BYTES", BLOCK_BYTES)
    gate.hold(2 * BLOCK_BYTES)
    async with opened(weights, lanes=4, chunk_bytes=GROUP_BYTES) as source:
        slot, guess = HostMemory(GROUP_BYTES), Guess((0, 0), kept=False)
        perhaps = asyncio.create_task(source.read_while_idle((0, "attn"), slot, guess))
        await gate.until_begun(3)
        guess.decide(wanted=False)
        gate.open.set()
        await perhaps
        assert gate.begun == STARTS[:3]
        assert source.bytes_needed == 0
        await source.read_into((0, "attn"), slot)
        assert bytes(slot.view) == weights.read_bytes()[:GROUP_BYTES]


async def test_a_right_one_is_read_on_at_once_and_by_one_lane(
    weights: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_lane, "STEP_BYTES", BLOCK_BYTES)
    gate.hold()
    async with opened(weights, lanes=8, chunk_bytes=GROUP_BYTES // 2) as source:
        guess = Guess((0, 0), kept=False)
        perhaps = asyncio.create_task(source.read_while_idle((0, "attn"), HostMemory(GROUP_BYTES), guess))
        await gate.until_begun(1)
        await settle()
        assert gate.begun == [0]
        guess.decide(wanted=True)
        gate.open.set()
        await perhaps
        assert gate.begun == [0, BLOCK_BYTES, GROUP_BYTES // 2]
