"""Groups that stay are launched as one where the program can, and all that tells of them stays true."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from actors.core.budget import Slot
from actors.core.errors import ActorFailed
from actors.core.event import Event
from actors.core.message import READY, GroupKey, Message
from actors.core.stretch import MOST_GROUPS, stretches
from actors.core.trace import Trace
from pipeline.engine.policies import POLICIES
from pipeline.engine.residency import Residency
from pipeline.tools.simulation.loop import run_virtual
from pipeline.tools.simulation.sim_line import SimLine, sim_line
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.simulation.world import SimPass, SimProgram

PASSES = 4


class TwoLinks(LayerTimings):
    one_link = False


TIMINGS = TwoLinks(layers=10, attn=0.1, ffn=0.2, attn_io=0.1, ffn_io=0.2)
ORDER = TIMINGS.order
FIRST, SECOND = list(ORDER[:MOST_GROUPS]), list(ORDER[MOST_GROUPS:])


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[GroupKey]]:
    """What the program has launched as one; a group whose seconds are below zero fails."""
    found: list[list[GroupKey]] = []

    def stretch(self: SimProgram, pass_: SimPass, messages: Sequence[Message[Slot]]) -> Sequence[Event]:
        found.append([message.key for message in messages])
        pass_.steps += found[-1]
        work = [self._seconds(pass_, message) for message in messages]
        seconds = -1.0 if min(work) < 0 else sum(work)

        def compute() -> float:
            if seconds < 0:
                raise ValueError("the kernel failed")
            return seconds

        pass_.parts[0] = self._device.launch("compute", compute, (pass_.parts[0],))
        return [pass_.parts[0]]

    monkeypatch.setattr(SimProgram, "stretch", stretch)
    return found


def line(stays: Sequence[GroupKey] = ORDER, **options: Any) -> SimLine:
    return sim_line(TIMINGS, residency=Residency({"device": tuple(stays)}), **{"passes": PASSES, **options})


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ([], [FIRST, SECOND]),
        ([ORDER[0]], [list(ORDER[1 : 1 + MOST_GROUPS]), list(ORDER[1 + MOST_GROUPS :])]),
        ([ORDER[2], ORDER[4]], [list(ORDER[:2]), list(ORDER[5:])]),
        (ORDER[1:], []),
    ],
    ids=["all stay", "the first moves", "two move", "the first stays"],
)
def test_what_stays_and_follows_one_another_is_launched_as_one_from_the_second_pass_on(
    moves: Sequence[GroupKey], expected: list[list[GroupKey]], launched: list[list[GroupKey]]
) -> None:
    async def main() -> None:
        sim = line([key for key in ORDER if key not in moves])
        await sim.run()
        assert [one.steps for one in sim.program.passes] == [[*ORDER]] * PASSES
        statistics = sim.line.statistics()
        assert statistics.actors["compute_scheduler"].messages == PASSES * len(ORDER)
        assert statistics.actors["compute_scheduler"].busy_seconds == pytest.approx(PASSES * 10 * 0.3)
        assert statistics.budgets["device"].held == 0
        assert statistics.budgets["device"].residents == len(ORDER) - len(moves)

    run_virtual(main())
    assert launched == expected * (PASSES - 1)


@pytest.mark.parametrize("policy", ["stage1", "stage3"])
def test_policies_with_triggers_hear_of_each_group(policy: str, launched: list[list[GroupKey]]) -> None:
    async def main() -> None:
        sim = line(policy=POLICIES[policy])
        await sim.run()
        assert [one.steps for one in sim.program.passes] == [[*ORDER]] * PASSES

    run_virtual(main())
    assert launched == []


def test_a_trace_has_a_span_of_each_group(launched: list[list[GroupKey]]) -> None:
    async def main() -> None:
        trace = Trace()
        await line(trace=trace).run()
        spans = [span for span in trace.spans if (span.actor, span.what) == ("compute_scheduler", "work")]
        assert [(span.seq, span.key) for span in spans] == [*enumerate(ORDER * PASSES)]
        assert all(left.ended <= right.started for left, right in pairwise(spans))
        assert {span.slot for span in spans if span.key == ORDER[3]} == {spans[3].slot}

    run_virtual(main())
    assert launched == []


def test_a_failure_names_the_first_group_of_its_stretch_and_all_is_loaded_anew(launched: list[list[GroupKey]]) -> None:
    left = [2]

    def work(key: GroupKey) -> float:
        left[0] -= key == SECOND[2]
        return -1.0 if left[0] == 0 else 0.1

    async def main() -> None:
        sim = line(work=work)
        with pytest.raises(ActorFailed, match=r"compute_scheduler failed at layer 8 group 'attn'.*the kernel failed"):
            await sim.run()
        assert launched == [FIRST, SECOND]
        await sim.run()
        assert [one.steps for one in sim.program.passes[2:]] == [[*ORDER]] * PASSES
        assert launched == [FIRST, SECOND] * PASSES

    run_virtual(main())


def test_what_a_stretch_computes_with_is_not_overwritten_when_the_line_runs_anew(
    launched: list[list[GroupKey]],
) -> None:
    async def main() -> None:
        sim = line(trace=(trace := Trace(recording=False)))
        running = asyncio.create_task(sim.run())
        while len(launched) < 4:
            await asyncio.sleep(0.1)
        running.cancel()
        await asyncio.wait([running])
        (last,) = sim.program.passes[-1].parts
        assert not last.done(), "stopped within a pass"
        trace.recording = True
        await sim.run()
        uploads = [span for span in trace.spans if (span.actor, span.what) == ("gpu_uploader", "work")]
        assert [span.key for span in uploads] == [*ORDER]
        assert min(span.started for span in uploads if span.key in SECOND) >= last.ended  # type: ignore[attr-defined]

    run_virtual(main())


def test_a_stretch_does_not_reach_over_a_hop_and_waits_for_the_pass_there(
    launched: list[list[GroupKey]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hops = (ORDER[4], ORDER[7])
    came: list[tuple[GroupKey, float]] = []

    async def arrive(self: SimProgram, pass_: SimPass, message: Message[Slot]) -> None:
        assert message.key not in pass_.steps
        await asyncio.sleep(5)
        came.append((message.key, asyncio.get_running_loop().time()))

    monkeypatch.setattr(SimProgram, "hops", hops)
    monkeypatch.setattr(SimProgram, "arrive", arrive)

    async def main() -> None:
        sim = line()
        await sim.run()
        assert [one.steps for one in sim.program.passes] == [[*ORDER]] * PASSES
        assert sim.line.statistics().actors["compute_scheduler"].stalled_seconds > PASSES * len(hops) * 5

    run_virtual(main())
    assert [key for key, _ in came] == [*hops] * PASSES
    cut = [list(ORDER[:4]), list(ORDER[4:7]), list(ORDER[7:])]
    assert launched == cut * (PASSES - 1)


def test_a_hop_right_behind_a_group_that_moves_cuts_off_no_empty_stretch() -> None:
    groups = [Message(*key, seq, SimpleNamespace(stays=seq > 0), READY) for seq, key in enumerate(ORDER[:3])]
    assert list(stretches(groups, SimpleNamespace(hops=(ORDER[1],), apart=()))) == [groups[:1], groups[1:]]


def test_a_group_that_is_computed_apart_is_a_stretch_of_its_own() -> None:
    groups = [Message(*key, seq, SimpleNamespace(stays=True), READY) for seq, key in enumerate(ORDER[:6])]
    apart = (ORDER[0], ORDER[3], ORDER[4])
    cut = [groups[:1], groups[1:3], groups[3:4], groups[4:5], groups[5:]]
    assert list(stretches(groups, SimpleNamespace(hops=(), apart=apart))) == cut
