"""Whoever swallows his end is left behind and named, and movers and programs that panic are named too (rule 7)."""

import asyncio
from typing import Any

import pytest
from support.small_lines import small_line

from actors.core.budget import Slot
from actors.core.errors import ActorFailed
from actors.core.event import Event
from actors.core.message import READY, Message
from actors.core.stage import Mover, Stage
from pipeline.engine.policies import POLICIES
from pipeline.tools.simulation.loop import run_virtual


class Panic(BaseException):
    """As bindings to other languages raise it: no `Exception`."""


@pytest.mark.parametrize("swallows", [1, 1000])
@pytest.mark.parametrize("after", ["disk_reader", "gpu_uploader"])
def test_a_stage_that_swallows_its_end_keeps_nobody_for_longer_than_that(after: str, swallows: int) -> None:
    class Stubborn(Stage):
        left = swallows
        stopped = False

        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            for _ in range(20):  # else a failing test would never end
                if message.seq != 2 or self.stopped:
                    break
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    self.left -= 1
                    self.stopped = self.stopped or not self.left
            return message

    async def main() -> None:
        stage = Stubborn()
        sim = small_line(layers=2, passes=2, insert={after: [stage]})
        running = asyncio.create_task(sim.run())
        await asyncio.sleep(100)
        running.cancel()
        stopping = asyncio.get_running_loop().time()
        with pytest.raises(asyncio.CancelledError):
            await running
        seconds = asyncio.get_running_loop().time() - stopping
        if swallows == 1:
            assert seconds == 0
        else:
            assert seconds == pytest.approx(5)
            with pytest.raises(ActorFailed, match=r"stubborn failed at layer 1 group 'attn'.*has not ended within 5 s"):
                await sim.run()
            assert asyncio.get_running_loop().time() == pytest.approx(stopping + 10)
            stage.stopped = True
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)
        stage.stopped = True
        await sim.run()
        assert len(sim.program.passes[-1].steps) == 4
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


class Copies(Mover):
    """A mover of the user's, in place, that ends as it is told."""

    async def move(self, message: Message[Any], slot: Slot) -> Event:
        if message.seq == 2:
            raise Panic("in Rust")
        return READY


def test_a_mover_that_panics_is_named() -> None:
    async def main() -> None:
        sim = small_line(layers=2, passes=2, insert={"disk_reader": [Copies()]})
        with pytest.raises(ActorFailed, match=r"copies failed at layer 1 group 'attn'.*Panic: in Rust"):
            await sim.run()

    run_virtual(main())


def test_a_program_that_panics_is_the_schedulers() -> None:
    async def main() -> None:
        for method in ("begin", "check_in", "step", "finish"):
            sim = small_line(layers=2, passes=2, policy=POLICIES["stage1"])

            def panic(*arguments: Any) -> Any:
                raise Panic("in Rust")

            setattr(sim.program, method, panic)
            with pytest.raises(ActorFailed, match=r"compute_scheduler failed.*Panic: in Rust"):
                await sim.run()
            assert len(asyncio.all_tasks()) == 1

    run_virtual(main())
