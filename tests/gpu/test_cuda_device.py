"""The CUDA device by itself: bytes, order, events, failures. Needs a GPU."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator

import pytest
import torch

from actors.core.message import READY
from actors.core.ports import Copy
from pipeline.devices.cuda import CudaDevice
from pipeline.devices.cuda_lane import CudaEvent

pytestmark = pytest.mark.cuda
MEGABYTE = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def warm_gpu() -> None:
    """The first product loads libraries for a second or so."""
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(64, 64, device="cuda", dtype=dtype)
        (matrix @ matrix).sum().item()


@pytest.fixture
async def device() -> AsyncIterator[CudaDevice]:
    opened = CudaDevice()
    yield opened
    await opened.aclose()


async def test_bytes_go_up_and_come_back(device: CudaDevice) -> None:
    source, target, back = device.host_memory(MEGABYTE), device.device_memory(MEGABYTE), device.host_memory(MEGABYTE)
    assert source.tensor.is_pinned()
    source.tensor.copy_(torch.randint(0, 256, (MEGABYTE,), dtype=torch.uint8))
    copies = [Copy(8, 256, 1000), Copy(5000, 2048, MEGABYTE - 5000)]
    uploaded = device.upload(source, target, copies, ())
    doubled = device.launch("compute", lambda: target.tensor.mul_(2), (uploaded,))
    downloaded = device.download(
        target, back, [Copy(c.target_offset, c.source_offset, c.length) for c in copies], (doubled,)
    )
    await downloaded.wait()
    for copy in copies:
        piece = slice(copy.source_offset, copy.source_offset + copy.length)
        assert torch.equal(back.tensor[piece], source.tensor[piece] * 2)


async def test_memory_is_handed_out_when_torch_has_stopped_writing_to_it(device: CudaDevice) -> None:
    """Torch hands out at once what was freed, as what its own stream is asked for comes later than what runs there."""
    size, source = 4 * MEGABYTE, device.host_memory(4 * MEGABYTE)
    source.tensor.fill_(1)
    freed = torch.empty(size, dtype=torch.uint8, device="cuda")
    address = freed.data_ptr()
    torch.cuda._sleep(200_000_000)
    freed.fill_(7)
    del freed
    memory = device.device_memory(size)
    assert memory.tensor.data_ptr() == address
    await device.upload(source, memory, [Copy(0, 0, size)], ()).wait()
    torch.cuda.synchronize()
    assert memory.tensor.eq(1).all()


async def test_nobody_asks_for_the_end_of_work_that_is_still_being_launched(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the interpreter lock from the thread that launches."""
    done, launched, early = CudaEvent.done, list[float](), list[float]()

    def noted(self: CudaEvent) -> bool:
        if not launched:
            early.append(time.perf_counter())
        return done(self)

    def launching() -> None:
        time.sleep(0.05)
        launched.append(time.perf_counter())

    event = device.launch("compute", launching, ())
    monkeypatch.setattr(CudaEvent, "done", noted)
    await device.ended_soon(event)
    assert event.done()
    assert len(launched) == 1
    assert len(early) < 5


async def test_a_slot_is_overwritten_only_after_its_reader(device: CudaDevice) -> None:
    """Rule 3 on the device: 200 uploads into one slot, each read by a slow kernel, no host wait in between."""
    size = 4 * MEGABYTE
    sources = [device.host_memory(size) for _ in range(2)]
    slot, sums = device.device_memory(size), torch.zeros(200, dtype=torch.int64, device="cuda")
    slow = torch.randn(2048, 2048, device="cuda")
    for index, source in enumerate(sources):
        source.tensor.fill_(index + 1)
    read = READY

    def reader(index: int) -> None:
        (slow @ slow @ slow).sum()
        sums[index] = slot.tensor.sum(dtype=torch.int64)

    for index in range(200):
        uploaded = device.upload(sources[index % 2], slot, [Copy(0, 0, size)], (read,))
        read = device.launch("compute", lambda index=index: reader(index), (uploaded,))
    await read.wait()
    assert sums.tolist() == [size * (index % 2 + 1) for index in range(200)]


async def test_uploads_overlap_computation(device: CudaDevice) -> None:
    size = 256 * MEGABYTE
    source, targets = device.host_memory(size), [device.device_memory(size) for _ in range(2)]
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    await device.launch("compute", lambda: matrix @ matrix, ()).wait()

    def compute() -> None:
        for _ in range(10):
            matrix @ matrix

    uploads = [device.upload(source, target, [Copy(0, 0, size)], ()) for target in targets * 2]
    steps = [device.launch("compute", compute, ()) for _ in range(4)]
    for event in [*uploads, *steps]:
        await event.wait()
    overlap = sum(
        max(0.0, min(a.span[1], b.span[1]) - max(a.span[0], b.span[0])) for a, b in itertools.product(uploads, steps)
    )
    moving = sum(event.span[1] - event.span[0] for event in uploads)
    print(f"H2D {4 * size / moving / 1e9:.1f} GB/s, overlapped {overlap / moving:.0%} of the copying")
    assert overlap > 0.5 * moving


async def test_times_are_right_though_events_are_recorded_anew(device: CudaDevice) -> None:
    held = []
    for index in range(600):
        event = device.launch("compute", lambda cycles=1000 * (1 + index % 100): torch.cuda._sleep(cycles), ())
        if index % 7 == 0:
            held.append(event)
        if index % 100 == 99:
            await event.wait()
    spans = [event.span for event in held]
    assert all(began < ended for began, ended in spans)
    assert all(one[1] <= other[0] + 1e-4 for one, other in itertools.pairwise(spans))
    assert sum(ended - began for began, ended in spans) < spans[-1][1] - spans[0][0]
    assert len(device._lanes["compute"].unheld) < 200, "600 pieces of work"


async def test_an_operation_behind_a_failed_one_fails_with_its_error(device: CudaDevice) -> None:
    ran = []

    def fail() -> None:
        raise ValueError("the kernel failed")

    first = device.launch("compute", fail, ())
    second = device.launch("compute", lambda: ran.append(1), (first,))
    with pytest.raises(ValueError, match="the kernel failed"):
        await second.wait()
    assert second.error is first.error
    assert not ran
    third = device.launch("compute", lambda: ran.append(3), ())
    await third.wait()
    assert ran == [3]


async def test_waiting_does_not_block_the_loop_and_can_be_cancelled(device: CudaDevice) -> None:
    event = device.launch("compute", lambda: torch.cuda._sleep(1_000_000_000), ())
    waiter = asyncio.create_task(event.wait())
    for _ in range(10):
        await asyncio.sleep(0.005)
    assert not event.done()
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    await event.wait()
    assert event.done()


async def test_the_link_is_measured_in_no_time_and_nothing_is_kept_for_it(device: CudaDevice) -> None:
    started = time.perf_counter()
    rate = device.link_bytes_per_second()
    assert time.perf_counter() - started < 0.1
    assert 1e9 < rate < 1e12
    assert device.touched_bytes("host") == 0
