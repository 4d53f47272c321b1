"""Bytes that do not arrive are told of in the name of the actor that moved them, whatever their computation says."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from actors.companion_swapper import CompanionSwapper
from actors.core.budget import Budget, Slot
from actors.core.companion import Meeting
from actors.core.errors import ActorFailed
from actors.core.event import Event
from actors.core.line import Line
from actors.core.message import READY, Message
from actors.core.stage import Mover, Source
from pipeline.devices.sim import SimDevice, SimEvent
from pipeline.tools.simulation.loop import run_virtual

LOST = SimEvent(0.0, 1.0, OSError("lost"))


class OneLayer(Source):
    async def plan(self) -> AsyncIterator[Message[None]]:
        yield Message(3, "kv", 0, None, READY)


class Moves(Mover):
    """A Mover with one slot, whose bytes arrive with the event."""

    def __init__(self, name: str, event: Event, *, keeps_source: bool = False) -> None:
        self.name, self.event, self.keeps_source = name, event, keeps_source
        self.budget = Budget(name, {"shared": [object()]}, asyncio.get_running_loop().time)

    def kind(self, message: Message[Any]) -> str:
        return "shared"

    async def move(self, message: Message[Any], slot: Slot) -> Event:
        return self.event


class Attended:
    """Bytes whose computation has ended with the event."""

    name = "kv"

    def __init__(self, computation: Event) -> None:
        self.computation = computation
        self.written: list[Any] = []

    def arrived(self, message: Message[Slot]) -> Meeting:
        async def write_back(buffer: Any) -> None:
            self.written.append(buffer)

        meeting = Meeting().arrive(message, (), write_back)
        meeting.launch(self.computation)
        return meeting


class Notes(SimDevice):
    """Keeps the event of the last copy from it."""

    def download(self, *arguments: Any) -> Event:
        self.copied = super().download(*arguments)
        return self.copied


def test_bytes_that_did_not_arrive_are_told_of_in_the_name_of_their_mover() -> None:
    async def main() -> None:
        attended = Attended(LOST)
        swapper = CompanionSwapper(attended, SimDevice(h2d_bytes_per_second=1.0))  # type: ignore[arg-type]
        line = Line(OneLayer(), catalog=None, clock=asyncio.get_running_loop().time)  # type: ignore[arg-type]
        with pytest.raises(ActorFailed, match=r"^loses failed at layer 3 group 'kv': OSError: lost"):
            await line.then(Moves("loses", LOST)).then(swapper).run()
        assert not attended.written

    run_virtual(main())


def test_nothing_is_copied_back_before_the_bytes_came_though_no_computation_was_launched() -> None:
    async def main() -> None:
        device, attended = Notes(h2d_bytes_per_second=1.0), Attended(READY)
        swapper = CompanionSwapper(attended, device)  # type: ignore[arg-type]
        line = Line(OneLayer(), catalog=None, clock=asyncio.get_running_loop().time)  # type: ignore[arg-type]
        reader, uploader = Moves("reader", READY), Moves("uploader", SimEvent(0.0, 5.0), keeps_source=True)
        await line.then(reader).then(uploader).then(swapper).run()
        assert device.copied.span is not None
        assert device.copied.span[0] >= 5
        assert len(attended.written) == 1

    run_virtual(main())
