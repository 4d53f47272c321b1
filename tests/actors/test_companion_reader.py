"""A host slot of companion bytes is refilled only after its last user."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, ClassVar

from actors.companion_reader import CompanionReader
from actors.core.budget import Budget, Slot
from actors.core.line import Line
from actors.core.message import READY, Message
from actors.core.stage import Sink, Source
from pipeline.tools.simulation.loop import run_virtual


class TwoPasses(Source):
    async def plan(self) -> AsyncIterator[Message[None]]:
        for seq in range(2):
            yield Message(0, "kv", seq, None, READY)


class FreesEarly(Sink):
    """Gives slots back while they are still in use for five seconds."""

    async def take(self, message: Message[Slot]) -> None:
        self.give_back(message, (self.start(message, asyncio.sleep(5)),))


class OnDisk:
    def __init__(self) -> None:
        self.asked_at: list[float] = []

    name = "kv"
    host_cells: ClassVar = {"shared": [object()]}

    def reading(self, message: Message[Any], buffer: Any) -> Coroutine[Any, Any, None]:
        self.asked_at.append(asyncio.get_running_loop().time())
        return asyncio.sleep(1)


def test_a_slot_is_refilled_after_its_last_user() -> None:
    async def main() -> None:
        disk, clock = OnDisk(), asyncio.get_running_loop().time
        reader = CompanionReader(disk, Budget("kv host", disk.host_cells, clock))  # type: ignore[arg-type]
        await Line(TwoPasses(), catalog=disk, clock=clock).then(reader).then(FreesEarly()).run()  # type: ignore[arg-type]
        assert disk.asked_at == [0, 5]

    run_virtual(main())
