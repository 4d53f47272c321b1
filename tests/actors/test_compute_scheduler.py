"""Groups are computed in their turn whatever order they come in, checked in first or not."""

import asyncio
import itertools

import pytest
from support.scheduler_lines import A0, A1, F0, F1, world
from support.small_lines import layer_timings, small_line

from actors.core.budget import Slot
from actors.core.errors import ActorFailed
from actors.core.message import Message
from pipeline.engine.policies import POLICIES
from pipeline.tools.simulation.loop import run_virtual
from pipeline.tools.simulation.world import SimPass, SimProgram


@pytest.mark.parametrize(
    "come",
    [
        [A0, F0, A1, F1, A0, F0, A1, F1],
        [A0, A1, F0, F1, A0, F1, A1, F0],
        [F1, A1, F0, A0, F1, A1, F0, A0],
        [A0, F0, A1, A0, F1, A1, F0, F1],
    ],
    ids=["in order", "early attn", "backwards", "the next pass before this one has ended"],
)
def test_groups_that_come_before_their_turn_are_computed_in_it(come: list[tuple[int, str]]) -> None:
    async def main() -> None:
        a_world = world(come)
        await a_world.line.run()
        assert [one.steps for one in a_world.program.passes] == [[A0, F0, A1, F1]] * 2
        assert a_world.line.statistics().budgets["device"].held == 0
        by_turn = [(span.layer, span.group) for span in a_world.computed()]
        assert by_turn == [A0, F0, A1, F1] * 2
        assert all(left.ended <= right.started for left, right in itertools.pairwise(a_world.computed()))

    run_virtual(main())


def test_a_parked_group_keeps_its_slot_until_it_was_computed() -> None:
    async def main() -> None:
        a_world = world([A1, F0, 2.0, A0, 1.0, F1])
        running = asyncio.create_task(a_world.line.run())
        await asyncio.sleep(1.5)
        assert a_world.line.statistics().budgets["device"].held == 2
        assert a_world.steps() == []
        await running
        assert a_world.steps() == [A0, F0, A1, F1]
        assert [span.started for span in a_world.computed()] == pytest.approx([2.01, 2.09, 2.21, 3.01])

    run_virtual(main())


def test_a_line_that_failed_with_groups_parked_runs_anew() -> None:
    async def main() -> None:
        a_world = world([A0, F1, A1, 1.0, RuntimeError("the planner failed")], [A0, F0, A1, F1])
        with pytest.raises(ActorFailed, match=r"plan failed.*the planner failed"):
            await a_world.line.run()
        assert a_world.steps() == [A0]
        a_world.program.passes.clear()
        await a_world.line.run()
        assert [one.steps for one in a_world.program.passes] == [[A0, F0, A1, F1]]
        assert a_world.line.statistics().budgets["device"].held == 0

    run_virtual(main())


def test_the_first_pass_begins_while_its_first_group_is_on_its_way() -> None:
    class Slow(SimProgram):
        async def begin(self) -> SimPass:
            await asyncio.sleep(0.02)
            return await super().begin()

    async def main() -> None:
        a_world = world([A0, F0, A1, F1] * 2, program=Slow, arrive_seconds=0.05)
        await a_world.line.run()
        first, second = a_world.program.passes
        assert first.began == pytest.approx(0.02), "its first group comes after 50 ms"
        assert a_world.computed()[0].started == pytest.approx(0.05), "nothing more is waited for"
        assert second.began >= a_world.computed()[3].ended, "what a later pass computes depends on the one before"

    run_virtual(main())


def test_a_pass_that_cannot_begin_fails_the_line_before_anything_has_come() -> None:
    class Broken(SimProgram):
        async def begin(self) -> SimPass:
            raise OSError("no rows")

    async def main() -> None:
        a_world = world([1.0, A0, F0, A1, F1], program=Broken)
        with pytest.raises(ActorFailed, match=r"compute_scheduler failed.*no rows"):
            await a_world.line.run()
        assert asyncio.get_running_loop().time() < 1.0
        assert a_world.line.statistics().budgets["device"].held == 0

    run_virtual(main())


class CountingProgram(SimProgram):
    checked: list[tuple[int, str]]

    async def begin(self) -> SimPass:
        if not self.passes:
            self.checked = []
        return await super().begin()

    def prepare(self, pass_: SimPass, message: Message[Slot]) -> None:
        pass

    async def check_in(self, pass_: SimPass, message: Message[Slot]) -> None:
        self.checked.append((message.layer, message.group))
        await super().check_in(pass_, message)


def test_a_blocking_scheduler_checks_each_group_in_once_with_the_device_idle() -> None:
    async def main() -> None:
        timings = layer_timings(layers=2, check_ms=5)
        a_world = world([A0, A1, F0, F1] * 2, timings=timings, program=CountingProgram, blocking=True)
        await a_world.line.run()
        assert a_world.program.checked == [A0, F0, A1, F1] * 2  # type: ignore[attr-defined]
        spans = a_world.computed()
        assert [right.started - left.ended for left, right in itertools.pairwise(spans)] == pytest.approx([0.005] * 7)
        checks = [span for span in a_world.line.trace.spans if span.what == "check"]
        assert [(span.actor, span.layer, span.group) for span in checks] == [
            ("compute_scheduler", *key) for key in [A0, F0, A1, F1] * 2
        ]
        assert all(check.ended <= span.started for check, span in zip(checks, spans, strict=True))

    run_virtual(main())


def test_others_check_nothing_in_and_run_ahead_of_the_device() -> None:
    async def main() -> None:
        timings = layer_timings(layers=2, check_ms=5)
        a_world = world([A0, F0, A1, F1], timings=timings, program=CountingProgram)
        running = asyncio.create_task(a_world.line.run())
        await asyncio.sleep(0.05)
        assert a_world.steps() == [A0, F0, A1, F1], "all launched, while the first still computes"
        await running
        assert a_world.program.checked == []  # type: ignore[attr-defined]
        assert not [span for span in a_world.line.trace.spans if span.what == "check"]
        gaps = [right.started - left.ended for left, right in itertools.pairwise(a_world.computed())]
        assert gaps == pytest.approx([0.0] * 3)

    run_virtual(main())


@pytest.mark.parametrize(
    ("name", "launched"), [("stage1", []), ("stage2", []), ("stage3", [A0, F0]), ("backpressure", [A0, F0, A1])]
)
def test_only_a_chained_line_launches_what_has_not_landed_yet(name: str, launched: list[tuple[int, str]]) -> None:
    """The host stands between a group and its computation, or does not; `stage3` has asked for its warm-up so far."""

    async def main() -> None:
        sim = small_line(layers=2, transfer_ms=1000, policy=POLICIES[name], gpu_groups=4)
        running = asyncio.create_task(sim.line.run())
        await asyncio.sleep(0.9)
        assert [step for one in sim.program.passes for step in one.steps][:3] == launched
        await running

    run_virtual(main())
