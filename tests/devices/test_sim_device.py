"""The simulated device: everything takes exactly the virtual time that it should."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from support.events import ForeignEvent

from actors.core.message import READY
from actors.core.ports import Copy
from pipeline.devices.port import ONE_PLACE, Place
from pipeline.devices.sim import SimDevice, SimEvent
from pipeline.tools.simulation.loop import run_virtual

Body = Callable[[SimDevice], Awaitable[None]]


def simulate(body: Body, *places: Sequence[Place], **options: float) -> None:
    async def main() -> None:
        device = SimDevice(*places, **{"h2d_bytes_per_second": 100.0, **options})  # type: ignore[arg-type]
        await body(device)
        await device.aclose()

    run_virtual(main())


def now() -> float:
    return asyncio.get_running_loop().time()


def upload(device: SimDevice, *lengths: int, after: tuple[object, ...] = ()) -> SimEvent:
    source, target = device.host_memory(1000), device.device_memory(1000)
    event = device.upload(source, target, [Copy(0, 0, length) for length in lengths], after)  # type: ignore[arg-type]
    assert isinstance(event, SimEvent)
    return event


def test_uploads_take_bytes_over_rate_one_after_the_other() -> None:
    async def body(device: SimDevice) -> None:
        first, second = upload(device, 50), upload(device, 20, 30, 50)
        assert (first.span, second.span) == (None, None)
        await first.wait()
        assert now() == pytest.approx(0.5)
        assert first.span == pytest.approx((0.0, 0.5))
        assert not second.done()
        await second.wait()
        assert second.span == pytest.approx((0.5, 1.5))
        await asyncio.sleep(10)
        third = upload(device, 100)
        await third.wait()
        assert third.span == pytest.approx((11.5, 12.5)), "an idle link saves nothing up"

    simulate(body)


@pytest.mark.parametrize(("options", "seconds"), [({}, 1.0), ({"d2h_bytes_per_second": 25.0}, 4.0)])
def test_downloads_have_a_link_of_their_own(options: dict[str, float], seconds: float) -> None:
    async def body(device: SimDevice) -> None:
        up = upload(device, 300)
        down = device.download(device.device_memory(100), device.host_memory(100), [Copy(0, 0, 60), Copy(0, 0, 40)], ())
        await down.wait()
        assert now() == pytest.approx(seconds)
        await up.wait()
        assert up.span == pytest.approx((0.0, 3.0))

    simulate(body, **options)


def test_a_slot_that_is_both_is_handed_on_in_no_time() -> None:
    async def body(device: SimDevice) -> None:
        memory = device.host_memory(1000)
        computing = device.launch("compute", lambda: 2.0, ())
        handed_on = device.upload(memory, memory, [Copy(0, 0, 1000)], (computing,))
        await handed_on.wait()
        assert now() == pytest.approx(2.0)

    simulate(body, ONE_PLACE)


def test_lanes_keep_their_order_and_run_beside_each_other() -> None:
    async def body(device: SimDevice) -> None:
        events = [device.launch(lane, lambda: 3.0, ()) for lane in ("one", "two", "one")]
        for event in events:
            await event.wait()
        assert [event.span for event in events] == [(0.0, 3.0), (0.0, 3.0), (3.0, 6.0)]

    simulate(body)


def test_an_operation_begins_after_the_last_of_what_it_waits_for() -> None:
    async def body(device: SimDevice) -> None:
        early, late = device.launch("one", lambda: 1.0, ()), device.launch("two", lambda: 5.0, ())
        event = device.launch("three", lambda: 1.0, (late, early, READY))
        behind = device.launch("three", lambda: 1.0, ())
        uploaded = upload(device, 100, after=(early,))
        await behind.wait()
        assert event.span == (5.0, 6.0)
        assert behind.span == (6.0, 7.0), "the lane is in order, though nothing holds this one back"
        assert uploaded.span == (1.0, 2.0)

    simulate(body)


def test_what_waits_for_a_failed_operation_does_not_run_and_fails_with_the_same_error() -> None:
    async def body(device: SimDevice) -> None:
        error, ran = ArithmeticError("kernel"), []

        def fail() -> float:
            raise error

        failed = device.launch("one", fail, (device.launch("zero", lambda: 4.0, ()),))
        behind = device.launch("two", lambda: ran.append("behind") or 9.0, (failed,))
        uploaded = upload(device, 900, after=(behind,))
        assert (failed.error, behind.error) == (None, None), "nobody knows before it happens"
        for event in (failed, behind, uploaded):
            with pytest.raises(ArithmeticError) as caught:
                await event.wait()
            assert caught.value is error
            assert event.error is error
        assert now() == pytest.approx(4.0)
        await device.launch("two", lambda: ran.append("next") or 1.0, ()).wait()
        assert ran == ["next"]
        assert now() == pytest.approx(5.0), "the lane goes on"

    simulate(body)


def test_of_foreign_events_it_takes_only_those_that_are_done() -> None:
    async def body(device: SimDevice) -> None:
        with pytest.raises(TypeError, match="only for simulated events, not for ForeignEvent"):
            device.launch("one", lambda: 1.0, (ForeignEvent(ended=False),))
        error = OSError("disk")
        failed = device.launch("one", lambda: 1.0, (ForeignEvent(), ForeignEvent(error=error)))
        assert failed.done()
        assert failed.error is error
        event = device.launch("one", lambda: 1.0, (ForeignEvent(),))
        await event.wait()
        assert event.span == (0.0, 1.0)

    simulate(body)


def test_seconds_that_do_not_add_up_in_floating_point_still_meet() -> None:
    async def body(device: SimDevice) -> None:
        events = [device.launch("one", lambda: 0.1, ()) for _ in range(30)]
        await asyncio.sleep(3.0)
        assert all(event.done() for event in events)
        await events[-1].wait()
        assert now() == pytest.approx(3.0, abs=1e-9)

    simulate(body)
