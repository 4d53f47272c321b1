"""Where a companion's line and the computations meet: each pass anew, each layer when it is asked for."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from support.events import ForeignEvent

from actors.core.companion import Meeting, Rendezvous
from actors.core.message import READY, Message
from pipeline.devices.sim import SimEvent
from pipeline.tools.simulation.loop import run_virtual


async def waits(work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    task = asyncio.ensure_future(work)
    await asyncio.sleep(1)
    assert not task.done()
    return task


def blocks(layer: int) -> Message[Any]:
    return Message(layer, "kv", 0, object(), READY)


def preparing(rendezvous: Rendezvous) -> Coroutine[Any, Any, None]:
    work = rendezvous.prepare(1)
    assert work is not None
    return work


def bring(rendezvous: Rendezvous, message: Message[Any]) -> Meeting:
    async def write_back(buffer: Any) -> None:
        raise NotImplementedError

    return rendezvous.meetings[message.layer].arrive(message, (), write_back)


def test_a_pass_is_planned_once_and_not_after_it_has_failed() -> None:
    async def main() -> None:
        rendezvous = Rendezvous((0,), ahead=True)
        planner = await waits(rendezvous.next_layer())
        for _ in range(2):
            rendezvous.begin()
            assert await planner == 0
            planner = await waits(rendezvous.next_layer())
        planner.cancel()
        rendezvous.begin()
        rendezvous.fail()
        planner = await waits(rendezvous.next_layer())
        rendezvous.begin()
        assert await planner == 0

    run_virtual(main())


def test_what_the_last_pass_left_on_its_way_meets_nothing_of_this_one() -> None:
    async def main() -> None:
        rendezvous = Rendezvous((1,), ahead=True)
        rendezvous.begin()
        assert rendezvous.prepare(0) is None
        assert rendezvous.message(0) is None
        computing = await waits(preparing(rendezvous))
        before, event = blocks(1), ForeignEvent()
        going_back = bring(rendezvous, before)
        await computing
        assert rendezvous.message(1) is before
        swapping = await waits(going_back.computation())
        rendezvous.begin()
        assert not swapping.done()
        assert rendezvous.message(1) is None
        computing = await waits(preparing(rendezvous))
        bring(rendezvous, blocks(1))
        await computing
        assert rendezvous.prepare(1) is None, "it is on its way"
        rendezvous.used(1, event)
        assert not swapping.done()
        swapping.cancel()

    run_virtual(main())


def test_the_swapper_hears_of_the_computation_even_when_it_was_launched_before() -> None:
    async def main() -> None:
        rendezvous, event = Rendezvous((0,), ahead=True), ForeignEvent()
        rendezvous.begin()
        going_back = bring(rendezvous, blocks(0))
        rendezvous.used(5, READY)
        rendezvous.used(0, event)
        assert await going_back.computation() is event

    run_virtual(main())


@pytest.mark.parametrize("layers", [(0, 1, 2), (1, 2)])
def test_not_ahead_a_layer_is_asked_for_when_the_one_before_has_ended(layers: tuple[int, ...]) -> None:
    async def main() -> None:
        rendezvous = Rendezvous(layers, ahead=False)
        for _ in range(2):
            rendezvous.begin()
            if 0 in layers:
                assert await rendezvous.next_layer() == 0
            asking = await waits(rendezvous.next_layer())
            now = asyncio.get_running_loop().time()
            rendezvous.computed(7, READY)
            rendezvous.computed(0, SimEvent(now, now + 3))
            assert await asking == 1
            assert asyncio.get_running_loop().time() == now + 3, "its end, not its launch"
            later = await waits(rendezvous.next_layer())
            rendezvous.computed(1, READY)
            assert await later == 2

    run_virtual(main())


def test_ahead_a_layer_is_asked_for_when_the_computation_of_the_one_before_is_launched() -> None:
    async def main() -> None:
        rendezvous = Rendezvous((0, 1, 2), ahead=True)
        for _ in range(2):
            rendezvous.begin()
            assert await rendezvous.next_layer() == 0
            asking = await waits(rendezvous.next_layer())
            rendezvous.computed(0, READY)
            await asyncio.sleep(1)
            assert not asking.done()
            rendezvous.used(0, ForeignEvent())
            assert await asking == 1
            (await waits(rendezvous.next_layer())).cancel()

    run_virtual(main())


@pytest.mark.parametrize("ahead", [True, False])
def test_a_line_of_some_layers_asks_for_its_first_and_then_for_the_one_behind(ahead: bool) -> None:
    async def main() -> None:
        rendezvous = Rendezvous((1, 7, 9), ahead=ahead, order=(1, 4, 7, 9))
        tell = rendezvous.used if ahead else rendezvous.computed
        for _ in range(2):
            rendezvous.begin()
            assert await rendezvous.next_layer() == 1
            asking = await waits(rendezvous.next_layer())
            tell(1, READY)
            await asyncio.sleep(1)
            assert not asking.done(), "the layer behind, whose bytes stay, comes before"
            tell(4, READY)
            assert await asking == 7
            tell(7, READY)
            assert await rendezvous.next_layer() == 9

    run_virtual(main())
