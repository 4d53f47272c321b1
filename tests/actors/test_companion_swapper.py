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


class Loses(Mover):
    async def move(self, message: Message[Any], slot: Slot) -> Event:
        return LOST


class Attended:
    name = "kv"

    def arrived(self, message: Message[Slot]) -> Meeting:
        async def write_back(buffer: Any) -> None:
            raise NotImplementedError

        meeting = Meeting().arrive(message, (), write_back)
        meeting.launch(LOST)
        return meeting


def test_bytes_that_did_not_arrive_are_told_of_in_the_name_of_their_mover() -> None:
    async def main() -> None:
        clock, mover = asyncio.get_running_loop().time, Loses()
        mover.budget = Budget("kv host", {"shared": [object()]}, clock)
        mover.kind = lambda message: "shared"  # type: ignore[method-assign]
        swapper = CompanionSwapper(Attended(), SimDevice(h2d_bytes_per_second=1.0))  # type: ignore[arg-type]
        line = Line(OneLayer(), catalog=None, clock=clock).then(mover).then(swapper)  # type: ignore[arg-type]
        with pytest.raises(ActorFailed, match=r"^loses failed at layer 3 group 'kv': OSError: lost"):
            await line.run()

    run_virtual(main())
