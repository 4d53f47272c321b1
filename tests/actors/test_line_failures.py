import asyncio
from dataclasses import replace
from typing import cast

import pytest
from support.small_lines import small_line

from actors.core.budget import Slot
from actors.core.errors import ActorFailed, LineError
from actors.core.line import Line
from actors.core.message import GroupKey, Message
from actors.core.ports import Catalog
from actors.core.stage import Stage
from actors.prefetch_planner import PrefetchPlanner
from pipeline.engine.policies import POLICIES
from pipeline.tools.simulation.loop import Deadlock, run_virtual


class FailingDisk:
    """Fails every read of one group, `times` times."""

    def __init__(self, times: int) -> None:
        self.times = times

    async def read_into(self, key: GroupKey, buffer: object) -> None:
        await asyncio.sleep(0.01)
        if key == (1, "ffn") and self.times:
            self.times -= 1
            raise OSError(5, "Input/output error", "model.safetensors at 4096")


def test_a_read_that_fails_names_actor_layer_group_and_file_and_the_line_runs_anew() -> None:
    async def main() -> None:
        disk = FailingDisk(times=1)
        sim = small_line(layers=3, passes=1, source=disk)
        with pytest.raises(
            ActorFailed, match=r"disk_reader failed at layer 1 group 'ffn'.*model\.safetensors at 4096"
        ) as e:
            await sim.line.run()
        assert (e.value.actor, e.value.layer, e.value.group) == ("disk_reader", 1, "ffn")
        assert isinstance(e.value.__cause__, OSError)
        assert [budget.statistics().held for budget in sim.line.budgets] == [0, 0]
        await sim.line.run()
        assert len(sim.program.passes[-1].steps) == 6

    run_virtual(main())


@pytest.mark.parametrize("policy", ["backpressure", "stage2", "stage3"])
def test_a_failed_computation_names_its_group(policy: str) -> None:
    async def main() -> None:
        def work(key: GroupKey) -> float:
            if key == (2, "attn"):
                raise ValueError("the kernel failed")
            return 0.1

        sim = small_line(layers=4, passes=1, work=work, policy=POLICIES[policy])
        with pytest.raises(ActorFailed, match=r"compute_scheduler failed at layer 2 group 'attn'.*the kernel failed"):
            await sim.line.run()

    run_virtual(main())


class Bad(Stage):
    """Breaks rule 1 in the way that it is told to."""

    def __init__(self, way: str) -> None:
        self.way = way

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        if message.seq != 3:
            return message
        if self.way == "raise":
            raise RuntimeError("stage is broken")
        if self.way == "drop":
            return None  # type: ignore[return-value]
        if self.way == "rename":
            return replace(message, layer=7)
        return replace(message, seq=message.seq + 1)


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("raise", "stage is broken"),
        ("drop", "must return a Message, returned NoneType"),
        ("rename", "rule 1.*may change only the event"),
        ("reorder", "rule 1.*may change only the event"),
    ],
)
def test_a_bad_stage_is_named(way: str, says: str) -> None:
    async def main() -> None:
        sim = small_line(insert={"pinned_stager": [Bad(way)]})
        with pytest.raises(ActorFailed, match=f"bad failed at layer 1 group 'ffn'.*{says}"):
            await sim.line.run()
        assert [budget.statistics().held for budget in sim.line.budgets] == [0, 0]

    run_virtual(main())


def test_cancelling_a_line_at_any_step_returns_every_slot() -> None:
    async def cancel_after(steps: int) -> bool:
        sim = small_line(layers=2, passes=2, disk_ms=20, transfer_ms=30)
        running = asyncio.create_task(sim.line.run())
        for _ in range(steps):
            await asyncio.sleep(0)
            if running.done():
                break
            await asyncio.sleep(0.005)
        finished = running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert [budget.statistics().held for budget in sim.line.budgets] == [0, 0]
        assert len(asyncio.all_tasks()) == 1
        await sim.line.run()
        assert [len(one.steps) for one in sim.program.passes[-2:]] == [4, 4]
        return finished

    steps = 0
    while not run_virtual(cancel_after(steps)):
        steps += 1
    assert steps > 100


def test_a_hang_is_reported_as_a_deadlock_that_says_who_waits() -> None:
    async def main() -> None:
        class Hang(Stage):
            async def handle(self, message: Message[Slot]) -> Message[Slot]:
                await asyncio.Event().wait()
                return message

        await small_line(insert={"disk_reader": [Hang()]}).line.run()

    with pytest.raises(Deadlock, match=r"hang in .*Hang\.handle.*pinned_stager waits for a message from hang"):
        run_virtual(main())


def test_bad_wiring_is_refused() -> None:
    async def main() -> None:
        class Look(Stage):
            async def handle(self, message: Message[Slot]) -> Message[Slot]:
                return message

        class Second(Look):
            pass

        line, no_catalog = small_line().line, cast("Catalog", None)
        with pytest.raises(LineError, match="two actors of the line are named 'look'"):
            line.insert("disk_reader", [Look(), Look()])
        with pytest.raises(LineError, match="cannot insert after 'reader': the line has prefetch_planner, disk_reader"):
            line.insert("reader", [Look()])
        with pytest.raises(LineError, match="cannot insert after 'compute_scheduler'"):
            line.insert("compute_scheduler", [Look()])
        with pytest.raises(LineError, match="queue of 'second': need a size of at least 1, have 0"):
            Line(PrefetchPlanner([]), catalog=no_catalog, clock=lambda: 0.0).then(Second(), queue=0)
        with pytest.raises(LineError, match="need an instance of Stage or Mover"):
            line.insert("disk_reader", [Look])

    run_virtual(main())
