"""Texts on their threads: order, company, cancelling and closing."""

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable

import pytest

from pipeline.system.threads import Threads
from pipeline.text.tokenizing import LONG_TEXT, Tokenizing


class Closed(Exception):
    pass


class Gate:
    """Work that lasts until the test lets it end."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.may_end.wait(30)
        return "through"


@pytest.fixture
async def tokenizing() -> AsyncIterator[Tokenizing]:
    opened = Tokenizing()
    yield opened
    opened.close(Closed)


def named(name: str) -> Callable[[], str]:
    return lambda: name


async def begin(tokenizing: Tokenizing, length: int = 1) -> "tuple[Gate, asyncio.Task[str]]":
    gate = Gate()
    task = asyncio.create_task(tokenizing.run(length, gate))
    while not gate.begun.is_set():
        await asyncio.sleep(0.001)
    return gate, task


async def test_calls_of_one_moment_come_back_together_and_in_their_order(tokenizing: Tokenizing) -> None:
    came: list[tuple[str, int]] = []
    turns = 0

    async def call(name: str) -> None:
        came.append((await tokenizing.run(100, named(name)), turns))

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    await asyncio.gather(*(call(f"{index}") for index in range(20)))
    counting.cancel()
    assert [name for name, _ in came] == [f"{index}" for index in range(20)]
    assert len({turn for _, turn in came}) == 1


async def test_short_texts_do_not_wait_for_a_long_one(tokenizing: Tokenizing) -> None:
    gate, long = await begin(tokenizing, LONG_TEXT)
    assert await tokenizing.run(LONG_TEXT - 1, named("short")) == "short"
    assert not long.done()
    gate.may_end.set()
    assert await long == "through"


async def test_each_kind_has_one_thread(tokenizing: Tokenizing) -> None:
    threads = set()
    for length in (1, LONG_TEXT):
        names = await asyncio.gather(
            *(tokenizing.run(length, lambda: threading.current_thread().name) for _ in range(50))
        )
        threads |= set(names)
    assert len(threads) == 2
    assert threading.current_thread().name not in threads


async def test_what_fails_fails_alone(tokenizing: Tokenizing) -> None:
    def fail() -> str:
        raise ValueError("no text")

    works = [named("a"), fail, named("b")]
    results = await asyncio.gather(*(tokenizing.run(1, work) for work in works), return_exceptions=True)
    assert (results[0], str(results[1]), results[2]) == ("a", "no text", "b")


async def test_a_cancelled_call_lets_go_of_its_text_while_the_thread_is_busy(tokenizing: Tokenizing) -> None:
    class Text:
        def __call__(self) -> str:
            raise AssertionError("nobody waits for it")

    gate, running = await begin(tokenizing)
    texts = [Text() for _ in range(3)]
    gone = [weakref.ref(text) for text in texts]
    waiting = [asyncio.create_task(tokenizing.run(1, text)) for text in [*texts, named("the interpreter keeps one")]]
    del texts
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    del waiting, task
    gc.collect()
    assert [one() for one in gone] == [None] * 3
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running  # at once, though the thread goes on
    after = asyncio.create_task(tokenizing.run(1, named("after")))
    await asyncio.sleep(0.01)
    assert not after.done()
    gate.may_end.set()
    assert await after == "after"


async def test_closing_ends_all_calls_at_once_and_waits_for_no_thread() -> None:
    tokenizing = Tokenizing()
    gate, running = await begin(tokenizing)
    waiting = asyncio.create_task(tokenizing.run(1, named("never")))
    await asyncio.sleep(0)
    tokenizing.close(Closed)
    errors = await asyncio.gather(running, waiting, return_exceptions=True)
    assert [type(error) for error in errors] == [Closed, Closed]
    assert errors[0] is not errors[1]
    with pytest.raises(Closed):
        await tokenizing.run(1, named("late"))
    gate.may_end.set()


@pytest.mark.parametrize("error", [StopIteration, asyncio.CancelledError, SystemExit])
async def test_what_an_event_loop_would_take_for_something_else_is_an_error_like_any_other(
    tokenizing: Tokenizing, error: type[BaseException]
) -> None:
    def fail() -> str:
        raise error

    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match=error.__name__):
            await tokenizing.run(1, fail)
        assert await tokenizing.run(1, named("after")) == "after"


async def test_where_the_thread_cannot_begin_each_call_has_an_error_of_its_own(
    tokenizing: Tokenizing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(self: Threads, *work: object) -> None:
        raise MemoryError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(Threads, "submit", no_thread)
        errors = await asyncio.gather(*(tokenizing.run(1, named("a")) for _ in range(2)), return_exceptions=True)
    assert [repr(error) for error in errors] == ['MemoryError("can\'t start new thread")'] * 2
    assert errors[0] is not errors[1]
    assert await tokenizing.run(1, named("after")) == "after"


def test_calls_whose_event_loop_has_closed_keep_nobody_from_closing() -> None:
    async def begin_three() -> "tuple[Tokenizing, Gate, list[asyncio.Task[str]]]":
        tokenizing = Tokenizing()
        gate, running = await begin(tokenizing)
        others = [asyncio.create_task(tokenizing.run(1, named("never"))) for _ in range(2)]
        await asyncio.sleep(0)
        return tokenizing, gate, [running, *others]

    loop = asyncio.new_event_loop()
    tokenizing, gate, tasks = loop.run_until_complete(begin_three())
    loop.close()
    tokenizing.close(Closed)
    gate.may_end.set()
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
