import asyncio
import time

import pytest
from support.events import ForeignEvent

from actors.core.budget import Budget
from actors.core.errors import LineError, SlotError
from actors.core.message import READY
from pipeline.devices.sim import SimEvent
from pipeline.tools.simulation.loop import run_virtual


def budget(attn: int = 1, ffn: int = 1) -> Budget:
    cells = {"attn": [f"attn{i}" for i in range(attn)], "ffn": [f"ffn{i}" for i in range(ffn)]}
    return Budget("host", cells, time.perf_counter)


async def test_slots_are_granted_first_come_first_served_over_all_kinds() -> None:
    pool = budget()
    held = await pool.acquire("ffn")
    order: list[str] = []

    async def take(name: str, kind: str) -> None:
        slot = await pool.acquire(kind)
        order.append(name)
        slot.release(after=READY)

    waiting = [asyncio.create_task(take("first", "ffn")), asyncio.create_task(take("second", "attn"))]
    for _ in range(5):
        await asyncio.sleep(0)
    assert order == [], "an attn slot is free, but the ffn request came first (rule 1)"
    held.release(after=READY)
    await asyncio.gather(*waiting)
    assert order == ["first", "second"]


async def test_releasing_twice_is_reported_and_does_not_free_the_next_owners_slot() -> None:
    pool = budget()
    first = await pool.acquire("attn")
    first.release(after=READY)
    second = await pool.acquire("attn")
    with pytest.raises(SlotError, match="slot 0 of the host budget was released twice"):
        first.release(after=READY)
    assert pool.statistics().held == 1
    second.release(after=READY)
    assert pool.statistics().held == 0


@pytest.mark.parametrize("steps", range(6))
async def test_cancelling_an_acquire_at_any_step_leaks_no_slot(steps: int) -> None:
    pool = budget()
    held = await pool.acquire("attn")
    cancelled, patient = asyncio.create_task(pool.acquire("attn")), asyncio.create_task(pool.acquire("attn"))
    await asyncio.sleep(0)
    held.release(after=READY)
    for _ in range(steps):
        await asyncio.sleep(0)
    cancelled.cancel()
    result = (await asyncio.gather(cancelled, return_exceptions=True))[0]
    if not isinstance(result, asyncio.CancelledError):
        result.release(after=READY)
    async with asyncio.timeout(1):
        (await patient).release(after=READY)
    statistics = pool.statistics()
    assert (statistics.held, statistics.peak, statistics.capacity) == (0, 1, 2)


def test_a_slot_carries_its_last_readers_event_and_cools_until_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pool = Budget("device", {"attn": ["memory"]}, loop.time)
        slot = await pool.acquire("attn")
        reading = SimEvent(0.0, 5.0)
        slot.release(after=reading)
        assert pool.statistics().cooling == 1
        again = await pool.acquire("attn")
        assert again.after is reading
        assert again.buffer == "memory"
        await again.vacated()
        assert loop.time() == pytest.approx(5.0)

    run_virtual(main())


def test_a_budget_is_settled_when_the_last_reader_of_every_slot_is_through() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pool = Budget("device", {"attn": ["memory", "more"], "ffn": ["other"]}, loop.time)
        for kind, reading in (("attn", SimEvent(0.0, 2.0)), ("attn", SimEvent(0.0, 5.0, OSError())), ("ffn", READY)):
            (await pool.acquire(kind)).release(after=reading)
        await pool.settle()
        assert loop.time() == pytest.approx(5.0)
        assert pool.statistics().cooling == 0

    run_virtual(main())


async def test_a_failed_reader_leaves_the_slot_vacated() -> None:
    pool = budget()
    slot = await pool.acquire("attn")

    class Failed:
        span = None
        error = OSError("kernel failed")

        def done(self) -> bool:
            return True

        async def wait(self) -> None:
            raise self.error

    slot.release(after=Failed())
    await (await pool.acquire("attn")).vacated()


async def test_recall_takes_every_slot_back() -> None:
    pool = budget(attn=2)
    for kind in ("attn", "ffn", "attn"):
        await pool.acquire(kind)
    pool.recall()
    assert pool.statistics().held == 0
    assert (await pool.acquire("attn")).place == "host"


async def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(LineError, match=r"no slots of kind 'expert', only \['attn', 'ffn'\]"):
        await budget().acquire("expert")


async def test_a_resident_group_is_found_from_its_upload_on_and_forgotten_when_the_line_has_stopped() -> None:
    group = (0, "attn")
    pool = Budget("device", {"attn": ["moving"]}, time.perf_counter, {group: "own"})
    assert not pool.holds(group)
    first = await pool.acquire("attn", group)
    assert (first.buffer, first.kept, pool.holds(group)) == ("own", None, True), "it has begun to move there"
    uploaded, computed = ForeignEvent(), ForeignEvent()
    first.filled = uploaded
    first.release(after=computed)
    second = await pool.acquire("attn", group)
    assert (second.kept, second.after) == (uploaded, computed), "it is there before its last reader is through"
    second.release(after=computed)
    await pool.settle()
    assert not pool.holds(group), "nobody can tell what a failure has spoilt"
    assert (await pool.acquire("attn", group)).kept is None
