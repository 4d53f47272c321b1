import asyncio
import contextlib
import time

import pytest

from actors.core.channel import open_channel
from actors.core.errors import ChannelClosed, LineError
from pipeline.tools.simulation.loop import run_virtual


async def test_items_arrive_in_order_and_the_sender_waits_for_room() -> None:
    sender, receiver = open_channel("reader", 2, time.perf_counter)
    sent = []

    async def send_all() -> None:
        for number in range(5):
            await sender.send(number)
            sent.append(number)
        sender.close()

    task = asyncio.create_task(send_all())
    for _ in range(10):
        await asyncio.sleep(0)
    assert sent == [0, 1]
    received = []
    with contextlib.suppress(ChannelClosed):
        while True:
            received.append(await receiver.receive())
    await task
    assert received == [0, 1, 2, 3, 4]
    statistics = receiver.statistics()
    assert (statistics.peak, statistics.sent, statistics.depth, statistics.capacity) == (2, 5, 0, 2)


async def test_sending_into_a_closed_sender_is_refused() -> None:
    sender, receiver = open_channel("reader", 1, time.perf_counter)
    sender.close()
    with pytest.raises(ChannelClosed):
        await sender.send(1)
    with pytest.raises(ChannelClosed):
        await receiver.receive()


@pytest.mark.parametrize("steps", range(8))
async def test_cancelling_a_receive_at_any_step_loses_nothing(steps: int) -> None:
    sender, receiver = open_channel("reader", 1, time.perf_counter)
    got: list[int] = []

    async def receive() -> None:
        got.append(await receiver.receive())

    first, second = asyncio.create_task(receive()), asyncio.create_task(receive())
    feeding = asyncio.create_task(sender.send(1))
    for _ in range(steps):
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, feeding, return_exceptions=True)
    if not got:
        async with asyncio.timeout(1):
            await second
    assert got == [1]
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)


@pytest.mark.parametrize("steps", range(8))
async def test_cancelling_a_send_at_any_step_means_it_did_not_happen_or_did(steps: int) -> None:
    sender, receiver = open_channel("reader", 1, time.perf_counter)
    await sender.send(0)
    waiting = asyncio.create_task(sender.send(1))
    taken = asyncio.create_task(receiver.receive())
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting.cancel()
    results = await asyncio.gather(waiting, taken, return_exceptions=True)
    delivered = not isinstance(results[0], asyncio.CancelledError)
    assert receiver.statistics().depth == (1 if delivered else 0)


def test_waiting_seconds_tell_who_waited() -> None:
    async def main() -> None:
        clock = asyncio.get_running_loop().time
        sender, receiver = open_channel("reader", 1, clock)
        waiting = asyncio.create_task(receiver.receive())
        await asyncio.sleep(3)
        assert receiver.statistics().starved_seconds == pytest.approx(3)
        await sender.send(1)
        await waiting
        await sender.send(2)
        blocked = asyncio.create_task(sender.send(3))
        await asyncio.sleep(4)
        assert sender.statistics().blocked_seconds == pytest.approx(4)
        await receiver.receive()
        await blocked
        await asyncio.sleep(5)
        statistics = sender.statistics()
        assert (statistics.starved_seconds, statistics.blocked_seconds) == (pytest.approx(3), pytest.approx(4))

    run_virtual(main())


def test_a_channel_without_room_is_refused() -> None:
    with pytest.raises(LineError, match=r"'reader'.*at least 1, have 0"):
        open_channel("reader", 0, time.perf_counter)


async def test_sending_now_never_waits_and_never_overtakes() -> None:
    sender, receiver = open_channel("reader", 1, time.perf_counter)
    assert sender.send_now(1)
    assert not sender.send_now(2), "there is no room"
    waiting = asyncio.create_task(sender.send(3))
    await asyncio.sleep(0)
    assert await receiver.receive() == 1
    assert not sender.send_now(4), "somebody stands before"
    await waiting
    assert await receiver.receive() == 3
    assert receiver.statistics().sent == 2


async def test_sending_now_after_the_end_is_refused() -> None:
    sender, receiver = open_channel("reader", 2, time.perf_counter)
    assert sender.send_now(1)
    assert not receiver.exhausted
    sender.close()
    assert not receiver.exhausted, "something is left"
    with pytest.raises(ChannelClosed, match="'reader'"):
        sender.send_now(2)
    assert await receiver.receive() == 1
    assert receiver.exhausted
