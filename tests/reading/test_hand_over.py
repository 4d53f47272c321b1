"""Threads have begun with what they were asked for before the event loop's thread works on."""

import asyncio
import time
from pathlib import Path

import pytest
from support import weight_files
from support.weight_files import GROUP_BYTES, Gate, opened

from pipeline.devices.memory import HostMemory
from pipeline.reading import preadv_lanes

pytestmark = pytest.mark.usefixtures("way")


async def test_reads_that_were_asked_for_have_begun(weights: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    if weight_files.way != "preadv":
        pytest.skip("the event loop asks a thread for every read")
    monkeypatch.setattr(preadv_lanes, "HAND_OVER_SECONDS", 10)
    gate.hold()
    async with opened(weights, lanes=2) as source:
        reads = [asyncio.create_task(source.read_into((layer, "attn"), HostMemory(GROUP_BYTES))) for layer in range(2)]
        await asyncio.sleep(0)
        source.hand_over()
        assert len(gate.begun) == 2
        source.hand_over()  # no lane is left for the others
        gate.open.set()
        await asyncio.gather(*reads)
        source.hand_over()  # nothing is left


async def test_threads_that_do_not_begin_are_not_waited_for(
    weights: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preadv_lanes.PreadvLane, "serves", property(lambda lane: False, lambda lane, serves: None))
    gate.hold()
    async with opened(weights, lanes=1) as source:
        read = asyncio.create_task(source.read_into((0, "attn"), HostMemory(GROUP_BYTES)))
        more = asyncio.create_task(source.read_into((1, "attn"), HostMemory(GROUP_BYTES)))
        await gate.until_begun(1)
        started = time.perf_counter()
        source.hand_over()
        assert time.perf_counter() - started < 1
        gate.open.set()
        await asyncio.gather(read, more)
