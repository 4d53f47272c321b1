"""Work beside an actor's loop: its span, its failure at every waiter, and its end however it is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from support.events import ForeignEvent, LostEvent

from actors.core.errors import LineError
from actors.core.operation import Operation
from pipeline.devices.sim import SimEvent
from pipeline.simulation.loop import run_virtual


class Named(Exception):
    pass


def named(error: Exception) -> Exception:
    """As an actor does it: the first cause is attached."""
    failure = Named(f"reader: {error}")
    failure.__cause__ = error
    return failure


def now() -> float:
    return asyncio.get_running_loop().time()


def begun(tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> Operation:
    operation = Operation(now)
    operation.begin(tasks, work, named)
    return operation


def test_it_runs_beside_its_maker_and_tells_when_it_ran() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            await asyncio.sleep(2)
            operation = begun(tasks, asyncio.sleep(5))
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
        async with asyncio.TaskGroup() as tasks:
            operation = Operation(now)
            task = operation.begin(tasks, asyncio.sleep(5), named)
            waiter = asyncio.ensure_future(operation.wait())
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(LineError, match="stopped before the work had ended"):
                await waiter
            assert operation.span == pytest.approx((0.0, 1.0))

    run_virtual(main())


def test_watching_over_another_operation_it_tells_when_that_one_ran() -> None:
    async def main() -> None:
        watched = SimEvent(1.0, 4.0)

        async def watch() -> None:
            await watched.wait()
            await asyncio.sleep(3)

        async with asyncio.TaskGroup() as tasks:
            operation = Operation(now, watched)
            operation.begin(tasks, watch(), named)
            assert operation.span is None
            await asyncio.sleep(5)
            assert not operation.done(), "the watch goes on"
            await operation.wait()
            assert now() == pytest.approx(7.0)
            assert operation.span == pytest.approx((1.0, 4.0))

    run_virtual(main())


def test_if_the_other_is_never_heard_of_it_tells_when_it_ran_itself() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            await asyncio.sleep(2)
            operation = Operation(now, LostEvent())
            operation.begin(tasks, asyncio.sleep(5), named)
            await operation.wait()
            assert operation.span == pytest.approx((2.0, 7.0))

    run_virtual(main())


def test_of_a_watched_operation_that_failed_nobody_tells_a_span_of_the_watch() -> None:
    """As without a watch: an operation that did not run has no span."""

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            operation = Operation(now, ForeignEvent(error=OSError("disk")))
            operation.begin(tasks, asyncio.sleep(5), named)
            await operation.wait()
            assert operation.span is None

    run_virtual(main())


async def test_its_error_reaches_the_task_group_and_every_waiter_as_one_object() -> None:
    cause = OSError("disk")

    async def work() -> None:
        await asyncio.sleep(0)
        raise cause

    operation = Operation(now)
    waiters = [asyncio.ensure_future(operation.wait()) for _ in range(2)]
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks:
            operation.begin(tasks, work(), named)
    (error,) = caught.value.exceptions
    assert isinstance(error, Named)
    assert str(error) == "reader: disk"
    assert error.__cause__ is cause
    assert operation.error is error
    assert await asyncio.gather(*waiters, return_exceptions=True) == [error, error]
    with pytest.raises(Named) as late:
        await operation.wait()
    assert late.value is error
    assert operation.span is not None


async def test_failure_may_give_the_error_back_as_it_is() -> None:
    error = Named("already")

    async def work() -> None:
        raise error

    operation = Operation(now)
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            operation.begin(tasks, work(), lambda cause: cause)
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

    operation = Operation(now)
    coroutine = work()
    waiter = asyncio.ensure_future(operation.wait())

    async def line() -> None:
        async with asyncio.TaskGroup() as tasks:
            operation.begin(tasks, coroutine, named)
            for _ in range(steps):
                await asyncio.sleep(0)
            raise asyncio.CancelledError

    task = asyncio.ensure_future(line())
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(10):
        await asyncio.gather(waiter, return_exceptions=True)
    assert operation.done()
    assert coroutine.cr_frame is None, "closed: nothing is left that was never awaited"
    assert entered == left == [True] * (steps > 0)
    assert (operation.span is not None) == (steps > 0)


async def test_a_cancelled_wait_leaves_the_work_alone() -> None:
    gate, ran = asyncio.Event(), []

    async def work() -> None:
        await gate.wait()
        ran.append(True)

    async with asyncio.TaskGroup() as tasks:
        operation = begun(tasks, work())
        waiter = asyncio.ensure_future(operation.wait())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert not operation.done()
        gate.set()
        await operation.wait()
    assert ran == [True]
