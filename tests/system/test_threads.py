"""Pools whose threads begin together, so that no work is left for later."""

import asyncio
import threading

import pytest

from pipeline.system.threads import Threads


def test_work_whose_thread_cannot_begin_is_not_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    start, starts, done = threading.Thread.start, [0], []

    def failing(thread: threading.Thread) -> None:
        starts[0] += 1
        if starts[0] == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    pool = Threads(3, "test")
    with pytest.raises(RuntimeError, match="can't start new thread"):
        pool.submit(done.append, "first")
    assert pool.submit(done.append, "second").result(5) is None
    pool.shutdown()
    assert done == ["second"]


def test_all_threads_of_a_pool_begin_with_the_first_work() -> None:
    before = threading.active_count()
    pool = Threads(4, "test")
    assert threading.active_count() == before
    pool.submit(int).result(5)
    assert threading.active_count() == before + 4
    pool.shutdown()


@pytest.mark.parametrize("error", [StopIteration, asyncio.CancelledError])
async def test_nobody_waits_for_ever_for_work_whose_error_an_event_loop_does_not_take(
    error: type[BaseException],
) -> None:
    def fail() -> None:
        raise error

    threads = Threads(1, "penstock-test")
    with pytest.raises(RuntimeError, match=error.__name__):
        async with asyncio.timeout(10):
            await asyncio.get_running_loop().run_in_executor(threads, fail)
    threads.shutdown()
