"""Virtual time: it jumps, it repeats itself, and it says who waits when nothing can happen any more."""

import asyncio
import threading
import time
from random import Random

import pytest

from pipeline.tools.simulation.loop import Deadlock, VirtualTimeLoop, run_virtual


def test_a_million_seconds_pass_in_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(1e6)
        return asyncio.get_running_loop().time()

    started = time.perf_counter()
    assert run_virtual(main()) == pytest.approx(1e6)
    assert time.perf_counter() - started < 5


def test_time_stands_still_while_anybody_can_run() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(100):
            await asyncio.sleep(0)
            time.sleep(0.0001)
        assert loop.time() == 0.0

    run_virtual(main())


def test_timers_ring_in_order_each_at_its_time() -> None:
    async def main() -> list[tuple[float, float]]:
        loop, rung = asyncio.get_running_loop(), []

        async def ring(after: float) -> None:
            await asyncio.sleep(after)
            rung.append((after, loop.time()))

        delays = [Random(1).choice([0.0, 0.25, 3.0, 3.0, 1e5]) + index / 8 for index in range(40)]
        await asyncio.gather(*map(ring, delays))
        return rung

    rung = run_virtual(main())
    assert [after for after, _ in rung] == sorted(after for after, _ in rung)
    assert [at for _, at in rung] == pytest.approx([after for after, _ in rung])


def test_two_runs_are_the_same() -> None:
    async def main() -> list[tuple[int, float]]:
        loop, random, seen = asyncio.get_running_loop(), Random(5), []
        queue: asyncio.Queue[int] = asyncio.Queue(2)

        async def put(number: int) -> None:
            for _ in range(20):
                await asyncio.sleep(random.random())
                await queue.put(number)

        async def take() -> None:
            while True:
                seen.append((await queue.get(), loop.time()))
                await asyncio.sleep(random.random() / 4)

        taker = asyncio.create_task(take())
        await asyncio.gather(*map(put, range(5)))
        taker.cancel()
        return seen

    first = run_virtual(main())
    assert len(first) >= 98
    assert first == run_virtual(main())


def test_a_timeout_rings_in_virtual_time() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        assert asyncio.get_running_loop().time() == pytest.approx(3600)

    run_virtual(main())


def test_an_error_comes_out_as_it_is() -> None:
    error = ValueError("mine")

    async def main() -> None:
        await asyncio.sleep(1)
        raise error

    with pytest.raises(ValueError, match="mine") as caught:
        run_virtual(main())
    assert caught.value is error


def test_a_deadlock_names_every_task_and_where_it_waits() -> None:
    undone: list[str] = []

    async def wait_for_room(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            undone.append(name)

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(wait_for_room("a"), name="reader")
            tasks.create_task(wait_for_room("b"), name="uploader")
            tasks.create_task(asyncio.sleep(5), name="gone")
            await asyncio.sleep(1)

    with pytest.raises(Deadlock) as caught:
        run_virtual(main())
    message = str(caught.value)
    assert message.startswith("all tasks wait, forever: ")
    for task in ("reader", "uploader"):
        assert f"{task} in test_a_deadlock_names_every_task_and_where_it_waits.<locals>.wait_for_room > Event.wait" in (
            message
        )
    assert "main > TaskGroup.__aexit__" in message
    assert "gone" not in message
    assert sorted(undone) == ["a", "b"], "the tasks were cancelled, not dropped"


def test_another_threads_call_is_heard_while_the_loop_has_something_to_do() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(answer.set_result, "heard"))
        thread.start()
        thread.join()
        return await answer

    assert run_virtual(main()) == "heard"


def test_work_on_a_thread_takes_no_virtual_time() -> None:
    """A stage may use threads: the clock stands still for them, though another task sleeps."""

    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        sleeping = asyncio.create_task(asyncio.sleep(5))
        await asyncio.to_thread(time.sleep, 0.02)
        back = loop.time()
        await sleeping
        return back, loop.time()

    assert run_virtual(main()) == (0.0, pytest.approx(5))


def test_a_deadlock_behind_work_on_threads_is_still_told() -> None:
    """Threads of the default executor end on another thread, whose end is waited for."""

    async def main() -> None:
        await asyncio.to_thread(int)
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match="test_a_deadlock_behind_work_on_threads"):
        run_virtual(main())


def test_each_loop_has_a_time_of_its_own() -> None:
    one, two = VirtualTimeLoop(), VirtualTimeLoop()
    one.run_until_complete(asyncio.sleep(7))
    assert (one.time(), two.time()) == (pytest.approx(7), 0.0)
    one.close()
    two.close()
