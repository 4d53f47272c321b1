"""The CPU as a device: what is copied and what is handed on, which lanes run beside which, and how it ends."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from random import Random

import pytest
import torch
from support.events import ForeignEvent

from actors.core.event import Event
from actors.core.message import READY
from actors.core.ports import Copy
from pipeline.devices.cpu import CpuDevice

LONGEST_WAIT_SECONDS = 30
WHOLE = (Copy(0, 0, 100),)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(params=[False, True], ids=["one place", "copy"])
async def device(request: pytest.FixtureRequest, gate: threading.Event) -> AsyncIterator[CpuDevice]:
    opened = CpuDevice(copy=request.param)
    yield opened
    gate.set()
    await opened.aclose()


def held(device: CpuDevice, gate: threading.Event, lane: str = "compute") -> Event:
    """Work that lasts until the gate is opened."""
    return device.launch(lane, lambda: gate.wait(LONGEST_WAIT_SECONDS), ())


def test_only_the_copying_device_has_two_memories() -> None:
    assert [place.name for place in CpuDevice().places] == ["host"]
    assert [place.name for place in CpuDevice(copy=True).places] == ["host", "device"]


async def test_a_slot_that_is_both_is_handed_on(device: CpuDevice, gate: threading.Event) -> None:
    memory = device.host_memory(100)
    memory.tensor.copy_(torch.arange(100))
    assert device.upload(memory, memory, WHOLE, ()) is READY
    assert device.upload(memory, memory, WHOLE, (READY, ForeignEvent())) is READY
    pending = held(device, gate)
    assert device.upload(memory, memory, WHOLE, (READY, pending)) is pending
    failed = ForeignEvent(error=OSError("disk"))
    assert device.upload(memory, memory, WHOLE, (READY, failed)) is failed
    assert memory.tensor.tolist() == list(range(100))


@pytest.mark.parametrize("direction", ["upload", "download"])
async def test_runs_of_bytes_land_at_their_offsets_and_nothing_else_changes(device: CpuDevice, direction: str) -> None:
    random = Random(3)
    source, target = device.host_memory(9000), device.device_memory(12_000)
    source.tensor.copy_(torch.randint(0, 256, (9000,)))
    target.tensor.fill_(77)
    expected, copies, position = bytearray(target.view), [], 0
    while position < 11_000:
        length = random.randrange(1, 700)
        copy = Copy(random.randrange(9000 - length), position, length)
        expected[position : position + length] = source.view[copy.source_offset :][:length]
        copies.append(copy)
        position += length + random.choice([0, 0, 1, 300])
    move = device.upload if direction == "upload" else device.download
    await move(source, target, copies, ()).wait()
    assert target.view == expected


async def test_uploads_downloads_and_computation_run_beside_each_other(
    device: CpuDevice, gate: threading.Event
) -> None:
    source, target = device.host_memory(100), device.device_memory(100)
    source.tensor.fill_(5)
    blocker = held(device, gate)
    upload = device.upload(source, target, WHOLE, (blocker,))
    for event in (device.download(target, source, (), ()), device.launch("other", lambda: None, ())):
        await event.wait()
    assert not upload.done()
    assert not target.tensor.any()
    gate.set()
    await upload.wait()
    assert (target.tensor == 5).all()


@pytest.mark.parametrize("direction", ["upload", "download"])
async def test_copies_of_one_direction_keep_their_order(
    device: CpuDevice, gate: threading.Event, direction: str
) -> None:
    old, new, target = (device.host_memory(100) for _ in range(3))
    old.tensor.fill_(1)
    new.tensor.fill_(2)
    blocker = held(device, gate)
    move = device.upload if direction == "upload" else device.download
    first = move(old, target, WHOLE, (blocker,))
    second = move(new, target, WHOLE, ())
    await asyncio.sleep(0.02)
    assert not second.done()
    gate.set()
    await second.wait()
    assert first.done()
    assert (target.tensor == 2).all()


async def test_a_failed_computation_is_what_the_download_behind_it_fails_with(device: CpuDevice) -> None:
    error = ArithmeticError("kernel")
    source, target = device.device_memory(100), device.host_memory(100)
    source.tensor.fill_(1)

    def fail() -> None:
        raise error

    downloaded = device.download(source, target, WHOLE, (device.launch("compute", fail, ()),))
    with pytest.raises(ArithmeticError):
        await downloaded.wait()
    assert downloaded.error is error
    assert not target.tensor.any()


async def test_closing_waits_for_what_runs_then_frees_all_memory(gate: threading.Event) -> None:
    device = CpuDevice(copy=True)
    source, target = device.host_memory(100), device.device_memory(100)
    kept = target.tensor
    source.tensor.fill_(8)
    blocker = held(device, gate, "last-lane")
    upload = device.upload(source, target, WHOLE, (blocker,))
    closing = asyncio.ensure_future(device.aclose())
    await asyncio.sleep(0.02)
    assert not closing.done()
    assert len(source.view) == len(target.view) == 100, "still in use"
    gate.set()
    await closing
    assert blocker.done()
    assert upload.done()
    assert (kept == 8).all()
    assert len(source.view) == len(target.view) == source.tensor.numel() == target.tensor.numel() == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("penstock-last-lane")]
