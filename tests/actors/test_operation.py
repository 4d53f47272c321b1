"""Work beside an actor's loop: its span, its failure at every waiter, and its end however it is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from support.events import ForeignEvent, LostEvent

from actors.core.crew import Crew
from actors.core.errors import ActorFailed, LineError
from actors.core.operation import Operation, foretell
from pipeline.devices.sim import SimEvent
from pipeline.tools.simulation.loop import run_virtual


class Panic(BaseException):
    """As bindings to other languages raise it: no `Exception`."""


def named(error: BaseException) -> ActorFailed:
    """As an actor does it: the first cause is attached."""
    return error if isinstance(error, ActorFailed) else ActorFailed("reader", 1, "ffn", error)


def now() -> float:
    return asyncio.get_running_loop().time()


def new_crew() -> Crew:
    return Crew(asyncio.get_running_loop().create_future())


def begun(work: Coroutine[Any, Any, None], watched: Any = None, crew: Crew | None = None) -> Operation:
    return Operation(crew or new_crew(), now, work, named, watched)


def test_it_runs_beside_its_maker_and_tells_when_it_ran() -> None:
    async def main() -> None:
        await asyncio.sleep(2)
        operation = begun(asyncio.sleep(5))
        assert (operation.done(), operation.span, operation.error) == (False, None, None)
        waiters = [asyncio.ensure_future(operation.wait()) for _ in range(3)]
        await operation.wait()
        assert now() == pytest.approx(7.0)
        await asyncio.gather(*waiters)
        assert (operation.done(), operation.error) == (True, None)
        assert operation.span == pytest.approx((2.0, 7.0))
        await operation.wait()

    run_virtual(main())


def test_whoever_waits_for_work_that_is_stopped_half_way_is_told() -> None:
    async def main() -> None:
        crew = new_crew()
        operation = begun(asyncio.sleep(5), crew=crew)
        waiter = asyncio.ensure_future(operation.wait())
        await asyncio.sleep(1)
        crew._over.cancel()
        next(iter(crew.tasks)).cancel()
        with pytest.raises(LineError, match="stopped before the work had ended"):
            await waiter
        assert operation.span == pytest.approx((0.0, 1.0))

    run_virtual(main())


def test_work_that_is_cancelled_by_itself_ends_the_run_by_name() -> None:
    async def main() -> None:
        crew = new_crew()
        operation = begun(asyncio.sleep(5), crew=crew)
        await asyncio.sleep(1)
        next(iter(crew.tasks)).cancel()
        with pytest.raises(ActorFailed, match=r"reader failed at layer 1 group 'ffn'.*cancelled by itself"):
            await operation.wait()
        assert await crew._over is operation.error

    run_virtual(main())


def test_watching_over_another_operation_it_tells_when_that_one_ran() -> None:
    async def main() -> None:
        watched = SimEvent(1.0, 4.0)

        async def watch() -> None:
            await watched.wait()
            await asyncio.sleep(3)

        operation = begun(watch(), watched)
        assert operation.span is None
        await asyncio.sleep(5)
        assert not operation.done(), "the watch goes on"
        await operation.wait()
        assert now() == pytest.approx(7.0)
        assert operation.span == pytest.approx((1.0, 4.0))

    run_virtual(main())


def test_if_the_other_is_never_heard_of_it_tells_when_it_ran_itself() -> None:
    async def main() -> None:
        await asyncio.sleep(2)
        operation = begun(asyncio.sleep(5), LostEvent())
        await operation.wait()
        assert operation.span == pytest.approx((2.0, 7.0))

    run_virtual(main())


def test_of_a_watched_operation_that_failed_nobody_tells_a_span_of_the_watch() -> None:
    """As without a watch: an operation that did not run has no span."""

    async def main() -> None:
        operation = begun(asyncio.sleep(5), ForeignEvent(error=OSError("disk")))
        await operation.wait()
        assert operation.span is None

    run_virtual(main())


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        (OSError("disk"), "OSError: disk"),
        (Panic("in Rust"), "Panic: in Rust"),
        (GeneratorExit("odd"), "GeneratorExit: odd"),
        (asyncio.CancelledError(), "raising CancelledError"),
        (StopAsyncIteration("odd"), "StopAsyncIteration: odd"),
        (BaseExceptionGroup("odd", [Panic("in Rust")]), "odd"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_whatever_it_raises_reaches_the_run_and_every_waiter_as_one_object(
    cause: BaseException, says: str
) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise cause

    crew = new_crew()
    operation = begun(work(), crew=crew)
    waiters = [asyncio.ensure_future(operation.wait()) for _ in range(2)]
    error = await crew._over
    assert isinstance(error, ActorFailed)
    assert (error.actor, error.layer, error.group) == ("reader", 1, "ffn")
    assert says in str(error)
    assert operation.error is error
    assert await asyncio.gather(*waiters, return_exceptions=True) == [error, error]
    with pytest.raises(ActorFailed) as late:
        await operation.wait()
    assert late.value is error
    assert operation.span is not None


async def test_what_is_foretold_ends_the_run_before_the_work_has_ended() -> None:
    """As of a read whose other threads still write into the buffer."""
    gate = asyncio.Event()

    async def work() -> None:
        await asyncio.gather(asyncio.sleep(0), half())
        await gate.wait()

    async def half() -> None:
        foretell(OSError("disk"))

    crew = new_crew()
    operation = begun(work(), crew=crew)
    error = await crew._over
    assert isinstance(error, ActorFailed)
    assert (error.actor, error.layer, error.group) == ("reader", 1, "ffn")
    assert not operation.done()
    gate.set()
    await operation.wait()
    foretell(ValueError("nobody works here"))


async def test_an_error_that_has_a_name_keeps_it() -> None:
    error = ActorFailed("somebody else", None, None, ValueError("already"))

    async def work() -> None:
        raise error

    operation = begun(work())
    with pytest.raises(ActorFailed):
        await operation.wait()
    assert operation.error is error


@pytest.mark.parametrize("steps", range(4))
async def test_cancelled_at_any_step_it_ends_and_lets_every_waiter_go(steps: int) -> None:
    """Cancelled before its first step, a task never enters its coroutine; who waits for it must go all the same."""
    entered, left = [], []

    async def work() -> None:
        entered.append(True)
        try:
            await asyncio.sleep(3600)
        finally:
            left.append(True)

    crew, coroutine = new_crew(), work()
    operation = begun(coroutine, crew=crew)
    waiter = asyncio.ensure_future(operation.wait())
    for _ in range(steps):
        await asyncio.sleep(0)
    next(iter(crew.tasks)).cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(waiter, return_exceptions=True)
    assert operation.done()
    assert coroutine.cr_frame is None, "closed: nothing is left that was never awaited"
    assert entered == left == [True] * (steps > 0)
    assert (operation.span is not None) == (steps > 0)
    assert crew.tasks == {}


async def test_whoever_waits_for_work_that_ends_well_goes_on_before_its_task_has_left_the_crew() -> None:
    crew = new_crew()
    operation = begun(asyncio.sleep(0), crew=crew)
    await operation.wait()
    (task,) = crew.tasks
    assert task.done(), "no turn of the loop is spent on the crew first"
    await asyncio.sleep(0)
    assert crew.tasks == {}


async def test_what_begins_when_the_run_is_over_is_stopped_at_once() -> None:
    entered = []

    async def work() -> None:
        entered.append(True)

    crew = new_crew()
    crew._over.cancel()
    with pytest.raises(LineError, match="stopped before the work had ended"):
        await begun(work(), crew=crew).wait()
    assert entered == []


async def test_a_cancelled_wait_leaves_the_work_alone() -> None:
    gate, ran = asyncio.Event(), []

    async def work() -> None:
        await gate.wait()
        ran.append(True)

    operation = begun(work())
    waiter = asyncio.ensure_future(operation.wait())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    assert not operation.done()
    gate.set()
    await operation.wait()
    assert ran == [True]
