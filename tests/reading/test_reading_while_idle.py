"""What is perhaps wanted is read while nothing else is, in steps, and no further once it is not wanted."""

import asyncio
from pathlib import Path

import pytest
from support.weight_files import CHUNKS, GROUP_BYTES, Gate, opened, settle

from actors.core.expert_guesses import Guess
from pipeline.devices.memory import HostMemory
from pipeline.reading import source as source_module
from pipeline.system.page_cache import BLOCK_BYTES

pytestmark = pytest.mark.usefixtures("way")
STARTS = [chunk * BLOCK_BYTES for chunk in range(CHUNKS)]


async def test_it_begins_when_no_group_is_read_and_arrives_whole(weights: Path, gate: Gate) -> None:
    gate.hold(GROUP_BYTES)
    async with opened(weights, lanes=4) as source:
        slots, guess = [HostMemory(GROUP_BYTES) for _ in range(2)], Guess((0, 0), kept=False)
        needed = asyncio.create_task(source.read_into((1, "attn"), slots[1]))
        await gate.until_begun(1)
        perhaps = asyncio.create_task(source.read_while_idle((0, "attn"), slots[0], guess))
        await settle()
        assert not guess.begun
        assert 0 not in gate.begun
        gate.open.set()
        await asyncio.gather(needed, perhaps)
        assert guess.begun
        assert bytes(slots[0].view[:GROUP_BYTES]) == weights.read_bytes()[:GROUP_BYTES]
        assert source.bytes_needed == 2 * GROUP_BYTES


@pytest.mark.parametrize("wanted", [True, False])
async def test_one_that_is_decided_waits_for_nothing(wanted: bool, weights: Path, gate: Gate) -> None:
    gate.hold(GROUP_BYTES)
    async with opened(weights, lanes=8) as source:
        slots, guess = [HostMemory(GROUP_BYTES) for _ in range(2)], Guess((0, 0), kept=False)
        needed = asyncio.create_task(source.read_into((1, "attn"), slots[1]))
        await gate.until_begun(1)
        perhaps = asyncio.create_task(source.read_while_idle((0, "attn"), slots[0], guess))
        await settle()
        guess.decide(wanted=wanted)
        await asyncio.wait_for(perhaps, 5)
        assert sorted(set(gate.begun) & set(STARTS)) == (STARTS if wanted else [])
        gate.open.set()
        await needed
        assert source.bytes_needed == GROUP_BYTES * (1 + wanted)


async def test_a_wrong_one_ends_with_the_step_under_way(
    weights: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "STEP_BYTES", BLOCK_BYTES)
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
    monkeypatch.setattr(source_module, "STEP_BYTES", BLOCK_BYTES)
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
