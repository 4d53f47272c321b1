"""However an actor, a stage, a policy or its work ends, the line ends at once, in its name, and runs anew (rule 7)."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from support.small_lines import small_line

from actors.core.budget import Slot
from actors.core.errors import ActorFailed
from actors.core.message import Message
from actors.core.ports import Ask, Half
from actors.core.stage import Stage
from pipeline.tools.simulation.loop import run_virtual
from pipeline.tools.simulation.sim_line import SimLine


class Panic(BaseException):
    """As bindings to other languages raise it: no `Exception`."""


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("says nothing")


class Ends(Stage):
    """Does once, at the third group, what the test wants."""

    name = "ends"

    def __init__(self, way: Callable[["Ends", Message[Slot]], Awaitable[Any]]) -> None:
        self.way = way
        self.armed = True

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        if message.seq == 2 and self.armed:
            self.armed = False
            result: Message[Slot] = await self.way(self, message)
            return result
        return message


def raising(error: BaseException) -> Callable[[Ends, Message[Slot]], Awaitable[Any]]:
    async def way(stage: Ends, message: Message[Slot]) -> None:
        raise error

    return way


def working(error: BaseException, wait: bool) -> Callable[[Ends, Message[Slot]], Awaitable[Any]]:
    """In work beside the loop, whether anybody waits for it or not."""

    async def work() -> None:
        await asyncio.sleep(0)
        raise error

    async def way(stage: Ends, message: Message[Slot]) -> Message[Slot]:
        event = stage.start(message, work())
        if wait:
            await event.wait()
        return message

    return way


async def cancelled_alone(stage: Ends, message: Message[Slot]) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def work_cancelled_alone(stage: Ends, message: Message[Slot]) -> Message[Slot]:
    async def work() -> None:
        await cancelled_alone(stage, message)

    stage.start(message, work())
    return message


async def returning(stage: Ends, message: Message[Slot]) -> None:
    return None


async def another_group(stage: Ends, message: Message[Slot]) -> Message[Slot]:
    return replace(message, seq=message.seq + 1)


async def no_event(stage: Ends, message: Message[Slot]) -> Message[Slot]:
    return replace(message, event=7)  # type: ignore[arg-type]


async def another_slot(stage: Ends, message: Message[Slot]) -> Message[Slot]:
    return replace(message, at=object())  # type: ignore[arg-type]


ENDS = [
    pytest.param(raising(ValueError("broken")), "ValueError: broken", id="error"),
    pytest.param(raising(Panic("in Rust")), "Panic: in Rust", id="panic"),
    pytest.param(raising(GeneratorExit()), "GeneratorExit", id="GeneratorExit"),
    pytest.param(raising(asyncio.CancelledError()), "raising CancelledError", id="CancelledError"),
    pytest.param(raising(StopAsyncIteration()), "StopAsyncIteration", id="StopAsyncIteration"),
    pytest.param(raising(BaseExceptionGroup("many", [Panic()])), "many", id="group"),
    pytest.param(raising(Mute()), "Mute, which says nothing", id="mute"),
    pytest.param(working(ValueError("broken"), True), "ValueError: broken", id="work"),
    pytest.param(working(Panic("in Rust"), True), "Panic: in Rust", id="work panics"),
    pytest.param(working(Panic("in Rust"), False), "Panic: in Rust", id="work panics beside"),
    pytest.param(working(asyncio.CancelledError(), False), "raising CancelledError", id="work ends itself beside"),
    pytest.param(work_cancelled_alone, "cancelled by itself, while the line goes on", id="work cancelled alone"),
    pytest.param(cancelled_alone, "cancelled by itself, while the line goes on", id="cancelled alone"),
    pytest.param(returning, "must return a Message, returned NoneType", id="None"),
    pytest.param(another_group, "rule 1", id="another group"),
    pytest.param(another_slot, "rule 1", id="another slot"),
    pytest.param(no_event, "must give an event", id="no event"),
]


def fails_by_name_and_runs_anew(sim: SimLine, says: str) -> Callable[[], Awaitable[None]]:
    async def main() -> None:
        async with asyncio.timeout(1000):
            with pytest.raises(ActorFailed, match=says):
                await sim.run()
            assert len(asyncio.all_tasks()) == 1
            assert [budget.statistics().held for line in sim.wired.lines for budget in line.budgets] == [0, 0]
            await sim.run()
        assert len(sim.program.passes[-1].steps) == 4

    return main


@pytest.mark.parametrize("after", ["prefetch_planner", "disk_reader", "gpu_uploader"])
@pytest.mark.parametrize(("way", "says"), ENDS)
def test_a_stage_that_ends_in_any_way_is_named_at_once(way: Any, says: str, after: str) -> None:
    async def main() -> None:
        sim = small_line(layers=2, passes=2, insert={after: [Ends(way)]})
        await fails_by_name_and_runs_anew(sim, f"ends failed at layer 1 group 'attn'.*{says}")()

    run_virtual(main())


class Look(Stage):
    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        return message


class Leaves(Look):
    """Its `run` is its own, and returns or fails before anything comes, or when it has seen three groups."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.armed = True

    async def run(self) -> None:
        if self.armed:
            self.armed = False
            if self.way == "panics":
                raise Panic("in Rust")
            if self.way == "returns":
                return
            await asyncio.sleep(0.05)
            return
        await super().run()


@pytest.mark.parametrize(
    ("way", "says"), [("panics", "Panic"), ("returns", "`run` has returned"), ("later", "`run` has returned")]
)
def test_a_run_of_ones_own_that_ends_before_its_turn_is_named(way: str, says: str) -> None:
    async def main() -> None:
        sim = small_line(layers=2, passes=2, insert={"disk_reader": [Leaves(way)]})
        await fails_by_name_and_runs_anew(sim, f"leaves failed.*{says}")()

    run_virtual(main())


def test_a_run_of_ones_own_may_end_late_in_its_turn() -> None:
    class Tidies(Look):
        async def run(self) -> None:
            await super().run()
            await asyncio.sleep(5)

    async def main() -> None:
        sim = small_line(layers=2, passes=1, insert={"disk_reader": [Tidies()]})
        await sim.run()
        assert len(sim.program.passes[-1].steps) == 4

    run_virtual(main())


@pytest.mark.parametrize(
    "name", ["prefetch_planner", "disk_reader", "pinned_stager", "gpu_uploader", "compute_scheduler"]
)
def test_each_of_our_own_actors_that_is_cancelled_alone_is_named_at_any_step(name: str) -> None:
    async def cancelled_after(steps: int) -> bool:
        sim = small_line(layers=2, passes=2, disk_ms=20, transfer_ms=30)
        running = asyncio.create_task(sim.run())
        for _ in range(steps):
            await asyncio.sleep(0)
            await asyncio.sleep(0.02)
        tasks = [task for task in asyncio.all_tasks() if task.get_name() == name]
        for task in tasks:
            task.cancel()
        if tasks:
            with pytest.raises(ActorFailed, match=f"{name} failed.*cancelled by itself, while the line goes on"):
                await running
        else:
            await running
        assert len(asyncio.all_tasks()) == 1
        await sim.run()
        return not tasks

    steps = 1
    while not run_virtual(cancelled_after(steps)):
        steps += 1
    assert steps >= 5


class Asks:
    """A policy whose methods end as the test wants."""

    name, triggered, waits, fallback_seconds, micro_batches, kv_ahead = "asks", True, "event", None, 1, True

    def __init__(self, method: str, error: BaseException) -> None:
        self.method = method
        self.error: BaseException | None = None
        self.later = error

    def fit(self, slots: Any) -> "Asks":
        return self

    def warmup(self) -> list[Ask]:
        return self.ends("warmup")

    def at_start(self, half: Half) -> list[Ask]:
        return self.ends("at_start")

    def ends(self, method: str) -> list[Ask]:
        if self.error is not None and method == self.method:
            error, self.error = self.error, None
            raise error
        return []


@pytest.mark.parametrize(("method", "actor"), [("warmup", "prefetch_planner"), ("at_start", "compute_scheduler")])
@pytest.mark.parametrize(
    "error", [Panic("in Rust"), asyncio.CancelledError(), GeneratorExit(), StopIteration()], ids=repr
)
def test_a_policy_that_ends_in_any_way_is_named(method: str, actor: str, error: BaseException) -> None:
    async def main() -> None:
        policy = Asks(method, error)
        sim = small_line(layers=2, passes=2, policy=policy)
        policy.error = policy.later
        says = f"{actor} failed.*policy asks: {method} failed: {type(error).__name__}"
        await fails_by_name_and_runs_anew(sim, says)()

    run_virtual(main())
