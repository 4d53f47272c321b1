"""Turns under every order of events: nobody overtakes, nobody is forgotten, nothing is lost to a cancellation."""

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import product

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.core.turns import Turns
from pipeline.tools.simulation.loop import run_virtual

ACTIONS = ("one", "two", "give", "cancel first", "cancel last", "tick")


class Shop:
    """Customers who want one or two pieces of what is given; who has come first is served first."""

    def __init__(self) -> None:
        self.turns = Turns(time.perf_counter)
        self.stock = 0
        self.given = 0
        self.wants: list[int] = []
        self.served: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def _buy(self, customer: int) -> None:
        want = self.wants[customer]
        await self.turns.take_turn(lambda: self.stock >= want)
        assert self.stock >= want, "what was waited for is there, and nobody came between"
        self.stock -= want
        self.served.append(customer)

    def give(self, count: int = 1) -> None:
        self.given += count
        self.stock += count
        self.turns.notify()

    async def act(self, action: str) -> None:
        waiting = [task for task in self.tasks if not task.done()]
        if action in ("one", "two"):
            self.wants.append(("one", "two").index(action) + 1)
            self.tasks.append(asyncio.ensure_future(self._buy(len(self.wants) - 1)))
        elif action == "give":
            self.give()
        elif action == "tick":
            await asyncio.sleep(0)
        elif waiting:
            waiting[0 if action == "cancel first" else -1].cancel()

    async def settle(self) -> None:
        """Two steps for each customer that the one before may have to wake, and some more."""
        for _ in range(2 * len(self.tasks) + 3):
            await asyncio.sleep(0)

    async def check(self) -> None:
        await self.settle()
        waiting = [customer for customer, task in enumerate(self.tasks) if not task.done()]
        assert not waiting or self.stock < self.wants[waiting[0]], "a wake-up was lost"
        self.give(2 * len(self.tasks))
        await self.settle()
        assert all(task.done() for task in self.tasks)
        assert self.served == sorted(self.served)
        assert self.served == [customer for customer, task in enumerate(self.tasks) if not task.cancelled()]
        assert self.stock == self.given - sum(self.wants[customer] for customer in self.served)
        assert [task.exception() for task in self.tasks if not task.cancelled()] == [None] * len(self.served)


async def run_shop(actions: Sequence[str]) -> None:
    shop = Shop()
    for action in actions:
        await shop.act(action)
    await shop.check()


async def run_every_shop(begin: Sequence[str], length: int) -> None:
    for actions in product(ACTIONS, repeat=length):
        await run_shop((*begin, *actions))


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("begin", [("one", "one", "one", "tick"), ("two", "one", "tick")], ids=str)
def test_every_short_order_of_events(begin: tuple[str, ...], new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Too long for an async test, whose loop must never be held up, not even by other programs."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run_every_shop(begin, length=5))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(ACTIONS), max_size=40))
def test_long_orders_of_events(actions: list[str]) -> None:
    run_virtual(run_shop(actions))


@pytest.mark.parametrize("steps", range(4))
async def test_a_woken_waiter_that_is_cancelled_passes_its_turn_on(steps: int) -> None:
    shop = Shop()
    for action in ("one", "one", "tick", "give", *["tick"] * steps):
        await shop.act(action)
    shop.tasks[0].cancel()
    await shop.settle()
    assert shop.served == [0 if steps else 1]
    assert shop.stock == 0
    await shop.check()


async def test_a_newcomer_does_not_overtake_a_waiter_that_is_woken_but_has_not_run_yet() -> None:
    shop = Shop()
    for action in ("one", "tick", "give", "one", "tick", "tick"):
        await shop.act(action)
    assert shop.served == [0]
    await shop.check()


async def test_a_waiter_without_its_condition_holds_back_those_behind_it() -> None:
    shop = Shop()
    for action in ("two", "one", "tick", "give", "tick", "tick", "tick"):
        await shop.act(action)
    assert shop.served == []
    await shop.act("cancel first")
    await shop.settle()
    assert shop.served == [1]
    await shop.check()


def test_waited_seconds_count_while_anybody_stands_in_the_row() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        turns, ready = Turns(loop.time), False
        await asyncio.sleep(1)
        await turns.take_turn(lambda: True)
        assert turns.waited_seconds == 0.0
        waiters = []
        for _ in range(3):
            waiters.append(asyncio.ensure_future(turns.take_turn(lambda: ready)))
            await asyncio.sleep(2)
        assert turns.waited_seconds == pytest.approx(6.0), "the time, not the sum over those who wait"
        waiters[0].cancel()
        await asyncio.sleep(1)
        assert turns.waited_seconds == pytest.approx(7.0)
        ready = True
        turns.notify()
        await asyncio.gather(*waiters, return_exceptions=True)
        await asyncio.sleep(10)
        assert turns.waited_seconds == pytest.approx(7.0)

    run_virtual(main())


async def test_who_was_woken_in_vain_sleeps_until_the_next_notice() -> None:
    turns, there, looked = Turns(time.perf_counter), False, 0

    def ready() -> bool:
        nonlocal looked
        looked += 1
        return there

    waiting = asyncio.create_task(turns.take_turn(ready))
    await asyncio.sleep(0)
    there = True
    turns.notify()
    there = False  # somebody else was faster
    await asyncio.sleep(0)
    before = looked
    for _ in range(10):
        await asyncio.sleep(0)
    assert looked == before
    there = True
    turns.notify()
    await waiting
