"""A read that hangs holds its buffer until it returns (rule 6), and nobody else: callers are told at once."""

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import threading
from typing import Any

import pytest

from pipeline import ActorFailed, ClosedError, Message, Model, Slot, Stage

pytestmark = pytest.mark.usefixtures("everything_moves")
PROMPT = "class Stack:\n"
LEAST_PIECE_BYTES = 1 << 15
"""Rows of the embedding table are read in fewer bytes."""


def address(memory: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Disk:
    """Lets one read hang until `gate` opens, and others of its group fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.hangs: list[bool] = []
        self.fails = False
        self.hung = threading.Event()
        self.held: list[int] = []
        self.reused = False
        preadv = os.preadv

        def reading(descriptor: int, buffers: list[memoryview], position: int) -> int:
            buffer, is_row = address(buffers[0].obj), len(buffers[0]) < LEAST_PIECE_BYTES
            if address(buffers[0]) == buffer and not is_row and self.take():  # a group's first piece, so others follow
                self.held.append(buffer)
                self.hung.set()
                self.gate.wait(20)
                self.held.clear()
                return preadv(descriptor, buffers, position)
            if self.fails and buffer in self.held:
                raise OSError(errno.EIO, "Input/output error")
            self.reused |= buffer in self.held
            return preadv(descriptor, buffers, position)

        monkeypatch.setattr(os, "preadv", reading)

    def take(self) -> bool:
        """Whether this read is the one to hang."""
        with contextlib.suppress(IndexError):
            return self.hangs.pop()
        return False


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait for long for those who were stopped."""
    monkeypatch.setattr("actors.core.crew.STOP_SECONDS", 0.05)
    monkeypatch.setattr("pipeline.engine.supervisor.STOP_SECONDS", 0.05)


async def generating(model: Model) -> "asyncio.Task[Any]":
    """A call that is being answered, and goes on for long."""
    call = asyncio.create_task(model.generate(PROMPT, max_new_tokens=200, ignore_eos=True))
    while not model.statistics().requests.running:
        await asyncio.sleep(0.001)
    return call


async def until_it_hangs(disk: Disk) -> None:
    while not disk.hung.is_set():
        await asyncio.sleep(0.001)


async def told(call: "asyncio.Task[Any]", disk: Disk) -> BaseException | None:
    """The error that a caller gets while the read still hangs."""
    await asyncio.wait([call])
    assert disk.held
    return call.exception()


@pytest.mark.parametrize("way", ["preadv", "aiofiles"])
async def test_closing_tells_callers_before_it_waits_for_the_read(
    way: str, disk: Disk, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    model = await Model.open(device="cpu", reader_way=way)
    call = await generating(model)
    disk.hangs.append(True)
    await until_it_hangs(disk)
    closing = [asyncio.create_task(model.aclose()) for _ in range(2)]
    assert isinstance(await told(call, disk), ClosedError)
    with pytest.raises(ClosedError):
        await model.generate(PROMPT, max_new_tokens=1)
    await asyncio.sleep(0.2)
    assert not any(one.done() for one in closing), "the thread still uses its buffer"
    assert "closing waits for reads or computations, which cannot be stopped: penstock-" in caplog.text
    disk.gate.set()
    await asyncio.gather(*closing)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("penstock")]


@pytest.mark.parametrize("way", ["preadv", "aiofiles"])
async def test_the_failure_of_another_read_is_told_at_once_and_the_next_line_waits_for_the_hung_one(
    way: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Model.open(device="cpu", reader_way=way, chunk_bytes=1 << 17) as model:
        expected = await model.generate(PROMPT, max_new_tokens=2)
        call = await generating(model)
        disk.fails = True
        disk.hangs.append(True)
        await until_it_hangs(disk)
        assert isinstance(await told(call, disk), ActorFailed)
        disk.fails = False
        following = asyncio.create_task(model.generate(PROMPT, max_new_tokens=2))
        await asyncio.sleep(0.1)
        assert not following.done()
        disk.gate.set()
        assert await following == expected
        assert not disk.reused


async def test_who_comes_while_a_read_hangs_on_is_told_who_is_waited_for(
    disk: Disk, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "penstock")
    async with Model.open(device="cpu", reader_way="preadv", chunk_bytes=1 << 17) as model:
        expected = await model.generate(PROMPT, max_new_tokens=2)
        call = await generating(model)
        disk.fails = True
        disk.hangs.append(True)
        await until_it_hangs(disk)
        assert isinstance(await told(call, disk), ActorFailed)
        disk.fails = False
        for _ in range(2):
            with pytest.raises(ActorFailed, match=r"disk_reader failed at layer \d+ group '\w+'.*has not ended within"):
                await model.generate(PROMPT, max_new_tokens=1)
        disk.gate.set()
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(ActorFailed):  # a thread needs its time to come back
                    assert await model.generate(PROMPT, max_new_tokens=2) == expected
                    break


class Lingering(Stage):
    """Holds a group until it is stopped, and ends a while after that."""

    def __init__(self) -> None:
        self.lingers, self.inside = False, asyncio.Event()

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        if self.lingers:
            self.inside.set()
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.6)
        return message


async def test_closing_waits_for_what_ends_after_the_reads_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task whose read has just returned has not had its turn of the loop when the disk's threads have ended."""
    monkeypatch.setattr("actors.core.crew.STOP_SECONDS", 0.4)
    stage = Lingering()
    model = await Model.open(device="cpu", insert={"disk_reader": [stage]}, residency=False)
    call = await generating(model)
    stage.lingers = True
    await stage.inside.wait()
    await model.aclose()
    assert isinstance((await asyncio.gather(call, return_exceptions=True))[0], ClosedError)
