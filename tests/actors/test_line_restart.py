"""What a stopped line leaves behind for the next run, and the order that every channel keeps (rules 1 and 3)."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.small_lines import layer_timings, small_line

from actors.core.budget import Budget, Slot
from actors.core.errors import ActorFailed
from actors.core.line import Line
from actors.core.message import READY, GroupKey, Message
from actors.core.stage import Sink, Source, Stage
from pipeline.devices.sim import SimEvent
from pipeline.groups.slot_kinds import SlotKinds
from pipeline.tools.simulation.loop import run_virtual
from pipeline.tools.simulation.world import SimCatalog


def test_a_recalled_slot_still_waits_for_the_copy_that_was_in_flight() -> None:
    async def main() -> None:
        sim = small_line(layers=2, transfer_ms=1000)
        running = asyncio.create_task(sim.line.run())
        await asyncio.sleep(0.5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert sim.parts.budgets[-1].statistics().held == 0
        assert sim.parts.budgets[-1].statistics().cooling >= 1
        await sim.line.run()
        assert sim.program.passes[-2].began >= 1.0, "the first pass of the new run"

    run_virtual(main())


def test_recall_remembers_the_reader_before_the_last_lease() -> None:
    async def main() -> None:
        budget = Budget("device", {"attn": ["memory"]}, asyncio.get_running_loop().time)
        reading = SimEvent(0.0, 5.0)
        (await budget.acquire("attn")).release(after=reading)
        await budget.acquire("attn")
        budget.recall()
        assert (await budget.acquire("attn")).after is reading

    run_virtual(main())


def test_a_failure_of_one_run_is_not_in_the_slots_of_the_next() -> None:
    async def main() -> None:
        errors: list[BaseException | None] = []
        failures = [ValueError("the kernel failed")]

        class Note(Stage):
            async def handle(self, message: Message[Slot]) -> Message[Slot]:
                errors.append(message.at.after.error)
                return message

        def work(key: GroupKey) -> float:
            if failures and key == (1, "ffn"):
                raise failures.pop()
            return 0.1

        sim = small_line(layers=2, passes=1, work=work, insert={"gpu_uploader": [Note()]})
        with pytest.raises(ActorFailed, match="the kernel failed"):
            await sim.line.run()
        errors.clear()
        await sim.line.run()
        assert errors == [None] * 4

    run_virtual(main())


def test_a_source_that_repeats_itself_is_found_out() -> None:
    class Stutter(Source):
        async def plan(self) -> AsyncIterator[Message[None]]:
            for seq in (0, 1, 1):
                yield Message(0, "attn", seq, None, READY)

    class Swallow(Sink):
        async def take(self, message: Message[Slot]) -> None:
            return

    async def main() -> None:
        catalog = SimCatalog(layer_timings(), SlotKinds.by_order(layer_timings().order))
        line = Line(Stutter(), catalog=catalog, clock=asyncio.get_running_loop().time).then(Swallow())
        with pytest.raises(ActorFailed, match="rule 1: swallow expected seq 2, received seq 1"):
            await line.run()

    run_virtual(main())
