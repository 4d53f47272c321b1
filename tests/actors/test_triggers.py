"""The planner is told of every start and end of a computation, at its moment and in order."""

from collections.abc import Sequence
from typing import Any

import pytest
from support.scheduler_lines import A0, A1, F0, F1, world
from support.scripted_policy import ScriptedPolicy
from support.small_lines import layer_timings, small_line

from actors.core.budget import Slot
from actors.core.errors import ActorFailed
from actors.core.event import Event
from actors.core.message import Message
from actors.core.trace import Trace
from pipeline.engine.policies import POLICIES
from pipeline.tools.simulation.loop import run_virtual
from pipeline.tools.simulation.world import SimPass, SimProgram


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("arrive_seconds", [0.01, 0.09, 0.3], ids=["waiting for compute", "near balance", "for groups"])
@pytest.mark.parametrize("blocking", [False, True])
def test_starts_and_ends_are_told_at_the_moment_when_the_device_starts_and_ends(
    micro_batches: int, arrive_seconds: float, blocking: bool
) -> None:
    async def main() -> None:
        timings = layer_timings(layers=2, check_ms=5)
        a_world = world(
            [A0, F0, A1, F1] * 2,
            timings=timings,
            micro_batches=micro_batches,
            arrive_seconds=arrive_seconds,
            blocking=blocking,
        )
        await a_world.line.run()
        spans = a_world.computed()
        assert {span.part for span in spans} == set(range(micro_batches))
        told = a_world.reports.told
        for what, seconds in (
            ("started", [min(span.started for span in spans if span.seq == seq) for seq in range(8)]),
            ("ended", [max(span.ended for span in spans if span.seq == seq) for seq in range(8)]),
        ):
            assert [position for said, position, _ in told if said == what] == list(range(8))
            assert [at for said, _, at in told if said == what] == pytest.approx(seconds)
        if micro_batches == 1:
            turns = [(said, position) for said, position, _ in told]
            assert turns == [(said, position) for position in range(8) for said in ("started", "ended")]

    run_virtual(main())


class Withdrawn(SimProgram):
    """Nobody needs the second half of any pass."""

    def step(self, pass_: SimPass, message: Message[Slot]) -> Sequence[Event]:
        return () if message.layer == 1 else super().step(pass_, message)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_group_that_nobody_needs_ends_when_those_before_it_have(micro_batches: int) -> None:
    """With two micro-batches, the second of the half before still computes when the first is through."""

    async def main() -> None:
        a_world = world([A0, F0, A1, F1] * 2, micro_batches=micro_batches, program=Withdrawn)
        await a_world.line.run()
        ends = [position for said, position, _ in a_world.reports.told if said == "ended"]
        assert ends == list(range(8))
        last = {seq: max(span.ended for span in a_world.computed() if span.seq == seq) for seq in (1, 5)}
        times = {position: at for said, position, at in a_world.reports.told if said == "ended"}
        assert [times[position] for position in (1, 2, 3)] == pytest.approx([last[1]] * 3)
        assert [times[position] for position in (5, 6, 7)] == pytest.approx([last[5]] * 3)

    run_virtual(main())


@pytest.mark.parametrize("policy", ["history", "stage1", "stage2", "stage3"])
def test_groups_that_nobody_needs_travel_once_like_any_other(policy: str) -> None:
    async def main() -> None:
        trace = Trace()
        options: dict[str, Any] = {"policy": POLICIES[policy], "trace": trace, "program": Withdrawn}
        sim = small_line(layers=2, passes=3, gpu_groups=10, **options)
        await sim.line.run()
        reads = [
            (span.layer, span.group) for span in trace.spans if span.actor == "disk_reader" and span.what == "work"
        ]
        assert sorted(reads) == sorted([A0, F0, A1, F1] * 3)
        assert [one.steps for one in sim.program.passes] == [[A0, F0]] * 3

    run_virtual(main())


def test_what_a_policy_raises_at_a_trigger_stops_the_line_and_names_the_group() -> None:
    async def main() -> None:
        def asks(half: Any) -> Any:
            if half.layer == 1:
                raise ValueError("the policy is broken")
            return ()

        sim = small_line(layers=3, policy=ScriptedPolicy(asks))
        with pytest.raises(ActorFailed, match=r"compute_scheduler.* layer 1 group 'attn'.*the policy is broken"):
            await sim.line.run()
        assert [budget.statistics().held for budget in sim.line.budgets] == [0, 0]

    run_virtual(main())
