import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest
from support.small_lines import small_line

from actors.core.budget import Slot
from actors.core.message import READY, Message
from actors.core.stage import Mover, Stage
from actors.core.trace import Trace
from pipeline.engine.policies import POLICIES
from pipeline.tools.simulation.loop import run_virtual


def test_the_slowest_link_never_idles() -> None:
    """80 layers, 100 ms per transfer, 80/120 ms of compute: both need 200 ms a layer, 16 s a pass."""

    async def main() -> None:
        sim = small_line(layers=80, passes=3)
        await sim.line.run()
        begins = [one.began for one in sim.program.passes]
        assert begins[2] - begins[1] == pytest.approx(16.0, rel=0.005)
        assert asyncio.get_running_loop().time() == pytest.approx(3 * 16.0, rel=0.005)

    run_virtual(main())


@pytest.mark.parametrize(
    ("transfer_ms", "disk_ms", "layer_ms"),
    [(100, 1, 200), (40, 1, 200), (150, 1, 300), (40, 130, 260), (130, 130, 260), (150, 0, 300)],
)
def test_a_pass_takes_as_long_as_its_slowest_link(transfer_ms: float, disk_ms: float, layer_ms: float) -> None:
    async def main() -> None:
        sim = small_line(layers=20, passes=3, transfer_ms=transfer_ms, disk_ms=disk_ms)
        await sim.line.run()
        begins = [one.began for one in sim.program.passes]
        assert begins[2] - begins[1] == pytest.approx(20 * layer_ms / 1000, rel=0.005)

    run_virtual(main())


def test_the_pass_never_drains_the_line() -> None:
    """Rule 9: the first group of pass 2 has landed before pass 1 ends, so its step follows at once."""

    async def main() -> None:
        trace = Trace()
        sim = small_line(layers=6, passes=3, attn_ms=100, ffn_ms=100, trace=trace)
        await sim.line.run()
        work = [span for span in trace.spans if span.actor == "compute_scheduler" and span.what == "work"]
        assert len(work) == 36
        gaps = [after.started - before.ended for before, after in itertools.pairwise(work)]
        assert max(gaps) == pytest.approx(0.0, abs=1e-6)

    run_virtual(main())


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("queue", [1, 3])
@pytest.mark.parametrize("disk_ms", [1, 0], ids=["two hops", "one link"])
def test_groups_are_computed_in_order_within_the_budget(slots: int, queue: int, disk_ms: float) -> None:
    async def main() -> None:
        sim = small_line(layers=5, passes=2, gpu_groups=2 * slots, queue=queue, disk_ms=disk_ms)
        await sim.line.run()
        expected = [(layer, group) for layer in range(5) for group in ("attn", "ffn")]
        assert [one.steps for one in sim.program.passes] == [expected, expected]
        for budget in sim.line.budgets:
            statistics = budget.statistics()
            assert statistics.held == 0
            assert 1 <= statistics.peak <= statistics.capacity == 2 * slots
        assert all(channel.peak <= queue for channel in sim.line.statistics().channels.values())

    run_virtual(main())


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("name", ["backpressure", "history1", "stage2", "stage3"])
def test_a_slot_is_overwritten_only_after_its_last_reader(name: str, micro_batches: int) -> None:
    """Rule 3, on spans: in each device slot, copies and computations never overlap."""

    async def main() -> None:
        trace = Trace()
        slots: dict[int, int] = {}

        class NoteSlot(Stage):
            async def handle(self, message: Message[Slot]) -> Message[Slot]:
                slots[message.seq] = message.at.index
                return message

        sim = small_line(
            layers=8,
            passes=2,
            transfer_ms=30,
            trace=trace,
            policy=replace(POLICIES[name], micro_batches=micro_batches),
            insert={"gpu_uploader": [NoteSlot()]},
        )
        await sim.line.run()
        uses: dict[int, list[tuple[float, float]]] = {}
        for span in trace.spans:
            if span.what == "work" and span.actor in {"gpu_uploader", "compute_scheduler"}:
                assert span.slot == slots[span.seq]
                uses.setdefault(span.slot, []).append((span.started, span.ended))
        assert len(uses) == 4
        for spans in uses.values():
            spans.sort()
            assert all(left[1] <= right[0] + 1e-9 for left, right in itertools.pairwise(spans))

    run_virtual(main())


def test_when_nobody_computes_the_line_stands_full_and_idle() -> None:
    async def main() -> None:
        sim = small_line(layers=8, passes=None, disk_ms=10, queue=4)
        never = asyncio.Event()
        sim.program.begin = never.wait  # type: ignore[method-assign, assignment]
        running = asyncio.create_task(sim.line.run())
        await asyncio.sleep(100)
        statistics = sim.line.statistics()
        assert statistics.budgets["device"].held == 4
        assert statistics.actors["gpu_uploader"].messages == 4
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert [budget.statistics().held for budget in sim.line.budgets] == [0, 0]

    run_virtual(main())


@pytest.mark.parametrize("after", ["prefetch_planner", "disk_reader", "pinned_stager", "gpu_uploader"])
def test_stages_are_inserted_after_any_actor_and_seen_in_the_statistics(after: str) -> None:
    async def main() -> None:
        class Look(Stage):
            async def handle(self, message: Message[Slot]) -> Message[Slot]:
                return message

        class LookAgain(Look):
            pass

        sim = small_line(layers=2, passes=1, insert={after: [Look(), LookAgain()]})
        await sim.line.run()
        names = [actor.name for actor in sim.line.actors]
        assert names[names.index(after) + 1 : names.index(after) + 3] == ["look", "look_again"]
        statistics = sim.line.statistics()
        assert statistics.actors["look"].messages == statistics.actors["look_again"].messages == 4
        assert statistics.channels["look_again"].sent == 4

    run_virtual(main())


@pytest.mark.parametrize("after", ["disk_reader", "pinned_stager", "gpu_uploader"])
@pytest.mark.parametrize("policy", ["backpressure", "stage2"])
def test_what_a_users_stage_does_beside_its_loop_is_waited_for(after: str, policy: str) -> None:
    """A device cannot wait for a coroutine, so the host does before it gives the device anything to do."""

    async def main() -> None:
        class Slow(Stage):
            async def handle(self, message: Message[Slot]) -> Message[Slot]:
                return replace(message, event=self.start(message, self.inspect(message)))

            async def inspect(self, message: Message[Slot]) -> None:
                await message.event.wait()
                await asyncio.sleep(0.3)

        trace = Trace()
        sim = small_line(
            layers=3, passes=2, transfer_ms=10, policy=POLICIES[policy], insert={after: [Slow()]}, trace=trace
        )
        await sim.line.run()
        assert [one.steps for one in sim.program.passes] == [list(sim.program.order)] * 2
        first = min(span.started for span in trace.spans if span.actor == "compute_scheduler" and span.what == "work")
        assert first >= 0.3

    run_virtual(main())


def test_a_users_mover_in_place_works_like_ours() -> None:
    async def main() -> None:
        class Scramble(Mover):
            async def move(self, message: Message[Slot], slot: Slot) -> Any:
                assert slot is message.at
                await self.landed(message)
                await asyncio.sleep(0.2)
                return READY

        sim = small_line(layers=3, passes=2, insert={"disk_reader": [Scramble()]})
        await sim.line.run()
        assert len(sim.program.passes) == 2

    run_virtual(main())
