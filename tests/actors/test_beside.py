"""Lines beside each other: the end of one is the end of all, whoever ends it, and all run anew."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from support.small_lines import layer_timings, small_line

from actors.core.budget import Budget, Slot
from actors.core.errors import ActorFailed, LineError
from actors.core.line import Line, run_beside, running
from actors.core.message import Message
from actors.core.stage import Mover, Sink, Source, Stage
from pipeline.engine.wiring import Wired
from pipeline.groups.slot_kinds import SlotKinds
from pipeline.tools.simulation.loop import run_virtual
from pipeline.tools.simulation.world import SimCatalog, SimCompanion


class Scripted(Source):
    """Works for so many seconds, ends or fails, and may take long to stop."""

    def __init__(self, seconds: float = 1e9, error: BaseException | None = None, stopping_seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.error = error
        self.stopping_seconds = stopping_seconds
        self.running = False
        self.runs = 0

    async def plan(self) -> AsyncIterator[Message[None]]:
        assert not self.running
        self.running = True
        self.runs += 1
        try:
            await asyncio.sleep(self.seconds)
            if self.error is not None:
                raise self.error
        finally:
            try:
                await asyncio.sleep(self.stopping_seconds)
            finally:
                self.running = False
        for message in ():
            yield message


class Swallow(Sink):
    async def take(self, message: Message[Slot]) -> None:
        return


def run(main: Coroutine[Any, Any, None]) -> None:
    """On virtual time; an exception that nobody looked at is a failure."""
    lost: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        await main
        gc.collect()
        assert len(asyncio.all_tasks()) == 1

    run_virtual(watched())
    assert lost == []


def lines_of(*sources: Scripted) -> list[Line]:
    catalog = SimCatalog(layer_timings(), SlotKinds.by_order(layer_timings().order))
    clock = asyncio.get_running_loop().time
    return [Line(source, catalog=catalog, clock=clock).then(Swallow()) for source in sources]


@pytest.mark.parametrize("first", [0, 1])
def test_when_one_fails_the_other_is_stopped_and_they_run_anew(first: int) -> None:
    async def main() -> None:
        sources = [Scripted(stopping_seconds=3), Scripted(stopping_seconds=3)]
        sources[first].seconds, sources[first].error = 5, ValueError("the first")
        lines = lines_of(*sources)
        for runs in (1, 2):
            with pytest.raises(ActorFailed, match="the first"):
                await run_beside(lines)
            assert [source.running for source in sources] == [False, False]
            assert [source.runs for source in sources] == [runs, runs]

    run(main())


def test_when_one_ends_the_other_is_stopped() -> None:
    async def main() -> None:
        sources = [Scripted(), Scripted(seconds=2, stopping_seconds=1)]
        await run_beside(lines_of(*sources))
        assert [source.running for source in sources] == [False, False]
        assert asyncio.get_running_loop().time() == 3

    run(main())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_failure_that_came_first_is_told(order: tuple[int, int]) -> None:
    class Stubborn(Scripted):
        async def plan(self) -> AsyncIterator[Message[None]]:
            try:
                async for message in super().plan():
                    yield message
            except asyncio.CancelledError:
                raise KeyError("a consequence") from None

    async def main() -> None:
        lines = lines_of(Scripted(seconds=1, error=ValueError("the first")), Stubborn())
        with pytest.raises(ActorFailed, match="the first"):
            await run_beside([lines[index] for index in order])

    run(main())


def test_both_fail_at_once() -> None:
    async def main() -> None:
        with pytest.raises(ActorFailed, match="one"):
            await run_beside(lines_of(Scripted(1, ValueError("one")), Scripted(1, ValueError("two"))))

    run(main())


def test_a_failure_is_heard_of_before_anybody_has_stopped() -> None:
    async def main() -> None:
        sources = [Scripted(seconds=1, error=ValueError("at once")), Scripted(stopping_seconds=3)]
        async with running(lines_of(*sources)) as over:
            assert "at once" in str(await over)
            assert asyncio.get_running_loop().time() == 1
            assert sources[1].running
        assert asyncio.get_running_loop().time() == 4

    run(main())


@pytest.mark.parametrize("cancellations", [1, 2, 5])
@pytest.mark.parametrize("failure", [None, ValueError("late")])
def test_cancelled_from_outside_it_ends_when_all_have_ended(cancellations: int, failure: Exception | None) -> None:
    async def main() -> None:
        sources = [Scripted(), Scripted(seconds=3 if failure else 1e9, error=failure, stopping_seconds=4)]
        beside = asyncio.create_task(run_beside(lines_of(*sources)))
        await asyncio.sleep(5)
        for _ in range(cancellations):
            beside.cancel()
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await beside
        assert [source.running for source in sources] == [False, False]

    run(main())


@pytest.mark.parametrize("steps", range(10))
def test_cancelled_in_the_moment_of_a_failure_it_is_cancelled_or_fails(steps: int) -> None:
    async def main() -> None:
        sources = [Scripted(), Scripted(seconds=4, error=ValueError("at once"))]
        beside = asyncio.create_task(run_beside(lines_of(*sources)))
        await asyncio.sleep(4)
        for _ in range(steps):
            await asyncio.sleep(0)
        beside.cancel()
        (outcome,) = await asyncio.gather(beside, return_exceptions=True)
        assert isinstance(outcome, ActorFailed | asyncio.CancelledError)
        assert [source.running for source in sources] == [False, False]

    run(main())


def test_cancelling_both_lines_at_any_step_while_kv_moves_returns_every_slot() -> None:
    async def cancel_after(steps: int) -> bool:
        sim = small_line(layers=3, passes=2, disk_ms=20, transfer_ms=30, kv_ms=25)
        assert len(sim.wired.lines) == 2
        running = asyncio.create_task(sim.run())
        for _ in range(steps):
            await asyncio.sleep(0)
            if running.done():
                break
            await asyncio.sleep(0.007)
        finished = running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert [b.statistics().held for line in sim.wired.lines for b in line.budgets] == [0, 0, 0, 0]
        assert len(asyncio.all_tasks()) == 1
        sim.program._rendezvous.fail()
        await sim.run()
        assert [len(one.steps) for one in sim.program.passes[-2:]] == [6, 6]
        return finished

    steps = 0
    while not run_virtual(cancel_after(steps)):
        steps += 1
    assert steps > 60


def a_stage(name: str) -> Stage:
    stage = Stage()
    stage.name = name
    return stage


def a_mover(budget: str) -> Mover:
    mover = Mover()
    mover.budget = Budget(budget, {"attn": [object()], "ffn": [object()]}, lambda: 0.0)
    return mover


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (lambda: a_stage("kv_uploader"), "two actors of lines beside each other are named 'kv_uploader'"),
        (lambda: a_mover("kv host"), "two budgets of lines beside each other are named 'kv host'"),
    ],
)
def test_names_of_one_line_are_not_used_in_another(stage: Callable[[], Stage | Mover], says: str) -> None:
    """Statistics and traces are kept by name: one would overwrite the other."""

    async def main() -> None:
        clashing = small_line(layers=3, kv_ms=25).wired
        clashing.line.insert("disk_reader", [stage()])
        with pytest.raises(LineError, match=says):
            Wired(clashing.lines, None, None)
        lines = small_line(layers=3, kv_ms=25).wired
        counters = [line.statistics() for line in lines.lines]
        for one in ("actors", "channels", "budgets"):
            apart = [name for line in counters for name in getattr(line, one)]
            assert list(getattr(lines.statistics(), one)) == apart

    run(main())


def test_a_failure_of_the_kv_line_is_told_by_actor_layer_and_group(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        errors = [OSError(28, "No space left on device")]

        async def failing(companion: SimCompanion, buffer: Any) -> None:
            await asyncio.sleep(0.01)
            if errors:
                raise errors.pop()

        monkeypatch.setattr(SimCompanion, "write_back", failing)
        sim = small_line(layers=3, passes=2, kv_ms=25)
        with pytest.raises(ActorFailed, match=r"kv_swapper failed at layer 1 group 'kv'.*No space left"):
            await sim.run()
        assert [b.statistics().held for line in sim.wired.lines for b in line.budgets] == [0, 0, 0, 0]
        sim.program._rendezvous.fail()
        await sim.run()

    run(main())
