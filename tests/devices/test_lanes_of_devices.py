"""Lanes: in order, beside each other, behind what they wait for. Host memory: where it lies and when it goes."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from support.events import ForeignEvent

from actors.core.message import READY
from pipeline.devices.lane import Lane, LaneEvent, Lanes
from pipeline.devices.memory import HUGE_PAGE_BYTES, HostMemory

LONGEST_WAIT_SECONDS = 30
BIG_BYTES = 32 << 20


@pytest.fixture
def lanes() -> Iterator[Lanes[Lane]]:
    made = Lanes(Lane)
    yield made
    made.close()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Work waits for it; opened at the latest when the test ends, before the lanes are closed."""
    event = threading.Event()
    yield event
    event.set()


def resident_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def permissions(address: int) -> str:
    """Those of the mapping that an address lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, letters = line.split()[:2]
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last:
            return letters
    raise LookupError(hex(address))


async def test_a_lane_runs_one_piece_after_the_other_on_one_thread(lanes: Lanes[Lane]) -> None:
    marks: list[tuple[int, str]] = []
    threads = set()

    def work(index: int) -> None:
        threads.add(threading.current_thread())
        marks.append((index, "begin"))
        time.sleep(0.0005)
        marks.append((index, "end"))

    events = [lanes["one"].submit(lambda index=index: work(index), ()) for index in range(50)]
    await events[-1].wait()
    assert marks == [(index, what) for index in range(50) for what in ("begin", "end")]
    assert len(threads) == 1
    assert threads.pop() is not threading.current_thread()


async def test_lanes_run_beside_each_other(lanes: Lanes[Lane]) -> None:
    barrier = threading.Barrier(3, timeout=LONGEST_WAIT_SECONDS)
    for event in [lanes[name].submit(barrier.wait, ()) for name in ("one", "two", "three")]:
        await event.wait()


async def test_work_waits_for_the_other_lanes_work(lanes: Lanes[Lane], gate: threading.Event) -> None:
    ran: list[str] = []
    first = lanes["one"].submit(lambda: (gate.wait(LONGEST_WAIT_SECONDS), ran.append("first")), ())
    second = lanes["two"].submit(lambda: ran.append("second"), (READY, first))
    await asyncio.sleep(0.02)
    assert (ran, first.done(), second.done()) == ([], False, False)
    gate.set()
    await second.wait()
    assert ran == ["first", "second"]


@pytest.mark.parametrize("seed", range(4))
async def test_every_piece_begins_after_all_that_it_waits_for(seed: int, lanes: Lanes[Lane]) -> None:
    random = Random(seed)
    submitted: list[tuple[str, list[LaneEvent], LaneEvent]] = []
    for _ in range(60):
        name = random.choice(["one", "two", "three"])
        earlier = [event for _, _, event in submitted[-12:]]
        after = random.sample(earlier, min(len(earlier), random.randrange(4)))
        seconds = random.choice([0.0, 0.0005])
        submitted.append((name, after, lanes[name].submit(lambda seconds=seconds: time.sleep(seconds), after)))
    for _, _, event in submitted:
        await event.wait()
    for _, after, event in submitted:
        assert event.span is not None
        for earlier_event in after:
            assert earlier_event.span is not None
            assert earlier_event.span[1] <= event.span[0]
    for name in ("one", "two", "three"):
        spans = [event.span for lane, _, event in submitted if lane == name and event.span]
        assert all(first[1] <= second[0] for first, second in pairwise(spans))


async def test_what_waits_for_failed_work_does_not_run_and_fails_with_the_same_error(lanes: Lanes[Lane]) -> None:
    error, ran = OSError("no such kernel"), []

    def fail() -> None:
        raise error

    failed = lanes["one"].submit(fail, ())
    behind = lanes["two"].submit(lambda: ran.append("behind"), (READY, failed))
    far_behind = lanes["three"].submit(lambda: ran.append("far behind"), (behind,))
    with pytest.raises(OSError, match="no such kernel"):
        await far_behind.wait()
    for event in (failed, behind, far_behind):
        assert event.error is error
        assert event.span is None
    await lanes["two"].submit(lambda: ran.append("next"), ()).wait()
    assert ran == ["next"], "the lane goes on"


async def test_of_foreign_events_a_lane_takes_only_those_that_are_done(lanes: Lanes[Lane]) -> None:
    ran: list[str] = []
    pending = lanes["one"].submit(lambda: ran.append("pending"), (ForeignEvent(ended=False),))
    with pytest.raises(TypeError, match="only for its own events and for what is done, not for ForeignEvent"):
        await pending.wait()
    error = OSError("disk")
    failed = lanes["one"].submit(lambda: ran.append("failed"), (ForeignEvent(error=error),))
    with pytest.raises(OSError, match="disk"):
        await failed.wait()
    assert failed.error is error
    await lanes["one"].submit(lambda: ran.append("done"), (ForeignEvent(),)).wait()
    assert ran == ["done"]


async def test_a_cancelled_wait_leaves_the_work_and_other_waiters_alone(
    lanes: Lanes[Lane], gate: threading.Event
) -> None:
    ran: list[str] = []
    event = lanes["one"].submit(lambda: (gate.wait(LONGEST_WAIT_SECONDS), ran.append("work")), ())
    impatient, patient = asyncio.ensure_future(event.wait()), asyncio.ensure_future(event.wait())
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert not event.done()
    assert event.error is None
    gate.set()
    await patient
    await event.wait()
    assert ran == ["work"]


async def test_a_cancelled_wait_does_not_unqueue_work(lanes: Lanes[Lane], gate: threading.Event) -> None:
    """A future that has not begun yet can be cancelled; the event's must not be."""
    ran: list[str] = []
    lanes["one"].submit(lambda: gate.wait(LONGEST_WAIT_SECONDS), ())
    queued = lanes["one"].submit(lambda: ran.append("queued"), ())
    waiting = asyncio.ensure_future(queued.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    gate.set()
    await queued.wait()
    assert ran == ["queued"]


async def test_the_span_is_there_before_the_event_is_done(lanes: Lanes[Lane], gate: threading.Event) -> None:
    seen: list[tuple[float, float] | None] = []
    before = time.perf_counter()
    event = lanes["one"].submit(lambda: (gate.wait(LONGEST_WAIT_SECONDS), time.sleep(0.002)), ())
    event.future.add_done_callback(lambda _: seen.append(event.span))
    assert event.span is None
    gate.set()
    await event.wait()
    assert event.span is not None
    assert seen == [event.span]
    assert before <= event.span[0] <= event.span[1] - 0.002 <= time.perf_counter() - 0.002


def test_lanes_are_made_once_and_closing_runs_them_to_their_end(gate: threading.Event) -> None:
    lanes, ran = Lanes(Lane), []
    assert lanes["closed"] is lanes["closed"]
    assert lanes["closed"] is not lanes["other"]
    events = [lanes[name].submit(lambda: gate.wait(LONGEST_WAIT_SECONDS), ()) for name in ("closed", "other")]
    events += [lanes[name].submit(lambda name=name: ran.append(name), ()) for name in ("closed", "other")]
    closing = threading.Thread(target=lanes.close)
    closing.start()
    closing.join(0.02)
    assert closing.is_alive()
    gate.set()
    closing.join(LONGEST_WAIT_SECONDS)
    assert not closing.is_alive()
    assert sorted(ran) == ["closed", "other"], "what was queued has run too"
    assert all(event.done() for event in events)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("penstock-closed")]
    lanes.close()


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 10_000, HUGE_PAGE_BYTES, HUGE_PAGE_BYTES + 1])
def test_host_memory_is_aligned_private_zeroed_and_writable(nbytes: int) -> None:
    memory = HostMemory(nbytes)
    assert len(memory.view) == memory.tensor.numel() == memory.nbytes == nbytes
    assert memory.tensor.dtype == torch.uint8
    if not nbytes:
        return
    address = memory.tensor.data_ptr()
    assert address % 4096 == 0
    assert permissions(address) == permissions(address + nbytes - 1) == "rw-p"
    assert not memory.tensor.any()
    memory.view[-1:] = b"\x07"
    assert int(memory.tensor[-1]) == 7
    memory.tensor[0] = 9
    assert memory.view[0] == 9


def test_host_memory_counts_once_it_is_written_and_free_gives_it_back() -> None:
    before = resident_bytes()
    memory = HostMemory(BIG_BYTES)
    assert resident_bytes() < before + BIG_BYTES // 2
    memory.tensor.fill_(1)
    assert resident_bytes() > before + BIG_BYTES // 2
    memory.free()
    assert resident_bytes() < before + BIG_BYTES // 2, "this test still holds the object"
    assert (len(memory.view), memory.tensor.numel()) == (0, 0)


def test_a_view_that_somebody_kept_outlives_free() -> None:
    memory = HostMemory(5000)
    memory.tensor.copy_(torch.arange(5000) % 251)
    kept_view, kept_tensor = memory.view[100:200], memory.tensor[100:200]
    memory.free()
    gc.collect()
    expected = [index % 251 for index in range(100, 200)]
    assert kept_view.tolist() == kept_tensor.tolist() == expected
    kept_view[0] = 3
    assert int(kept_tensor[0]) == 3


def test_freeing_twice_is_an_error() -> None:
    memory = HostMemory(4096)
    memory.free()
    with pytest.raises(AttributeError):
        memory.free()
