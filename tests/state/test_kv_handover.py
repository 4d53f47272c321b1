"""Where the KV line and the computation meet: each pass anew, each layer when it is asked for."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from support.events import ForeignEvent

from actors.core.message import READY, Message
from pipeline.devices.sim import SimEvent
from pipeline.state.kv_handover import KvHandovers
from pipeline.tools.simulation.loop import run_virtual


async def waits(work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    task = asyncio.ensure_future(work)
    await asyncio.sleep(1)
    assert not task.done()
    return task


def blocks(layer: int) -> Message[Any]:
    return Message(layer, "kv", 0, object(), READY)


def preparing(handovers: KvHandovers) -> Coroutine[Any, Any, None]:
    work = handovers.prepare(1)
    assert work is not None
    return work


def test_a_pass_is_planned_once_and_not_after_it_has_failed() -> None:
    async def main() -> None:
        handovers = KvHandovers((0, 1), ahead=True)
        planner = await waits(handovers.begun())
        handovers.begin_pass()
        await planner
        planner = await waits(handovers.begun())
        handovers.begin_pass()
        await planner
        handovers.begin_pass()
        handovers.fail()
        planner = await waits(handovers.begun())
        handovers.begin_pass()
        await planner

    run_virtual(main())


def test_what_the_last_pass_left_on_its_way_meets_nobody_in_this_one() -> None:
    async def main() -> None:
        handovers = KvHandovers((1,), ahead=True)
        handovers.begin_pass()
        assert handovers.prepare(0) is None
        assert handovers.message(0) is None
        computing = await waits(preparing(handovers))
        before, event = blocks(1), ForeignEvent()
        going_home = handovers.arrived(before)
        await computing
        assert handovers.message(1) is before
        swapping = await waits(going_home())
        handovers.begin_pass()
        assert not swapping.done()
        assert handovers.message(1) is None
        computing = await waits(preparing(handovers))
        handovers.arrived(blocks(1))
        await computing
        assert handovers.prepare(1) is None, "it is on its way"
        handovers.attended(1, event)
        assert not swapping.done()
        swapping.cancel()

    run_virtual(main())


def test_the_swapper_hears_of_the_attention_even_when_it_was_launched_before() -> None:
    async def main() -> None:
        handovers, event = KvHandovers((0,), ahead=True), ForeignEvent()
        handovers.begin_pass()
        going_home = handovers.arrived(blocks(0))
        handovers.attended(5, READY)
        handovers.attended(0, event)
        assert await going_home() is event

    run_virtual(main())


@pytest.mark.parametrize("layers", [(0, 1, 2), (1, 2)])
def test_not_ahead_a_layer_is_asked_for_when_the_one_before_has_ended(layers: tuple[int, ...]) -> None:
    async def main() -> None:
        handovers = KvHandovers(layers, ahead=False)
        for _ in range(2):
            handovers.begin_pass()
            await handovers.wanted(0)
            asking = await waits(handovers.wanted(1))
            now = asyncio.get_running_loop().time()
            handovers.computed(7, READY)
            handovers.computed(0, SimEvent(now, now + 3))
            await asking
            assert asyncio.get_running_loop().time() == now + 3, "its end, not its launch"
            later = await waits(handovers.wanted(2))
            handovers.computed(1, READY)
            await later

    run_virtual(main())


def test_ahead_a_layer_is_asked_for_when_the_attention_of_the_one_before_is_launched() -> None:
    async def main() -> None:
        handovers = KvHandovers((0, 1, 2), ahead=True)
        for _ in range(2):
            handovers.begin_pass()
            await handovers.wanted(0)
            asking = await waits(handovers.wanted(1))
            handovers.computed(0, READY)
            await waits(handovers.wanted(1))
            handovers.attended(0, ForeignEvent())
            await asking
            await waits(handovers.wanted(2))

    run_virtual(main())
