"""Right hints save time, wrong ones cost a slot for what moves at most, and the gate closes when they cost more."""

import asyncio

import pytest
from support.expert_lines import Wanted, expert_world, part, replayed

from actors.core.expert_hints import RESTS, Hints
from actors.core.message import READY, Message
from pipeline.tools.simulation.loop import run_virtual

TOTAL = 40
LONG = 2.0
"""Computing for longer than a read takes: the disk is idle meanwhile."""


def alternate(count: int, *, each: int = 2) -> list[Wanted]:
    """Two layers that want other experts each time."""
    return [(step % 2, [(step // 2 * each + one) % 20 for one in range(each)], False) for step in range(count)]


@pytest.mark.parametrize("slots", [[8], [8, 8], [20, 6]])
def test_right_hints_hide_the_reads_and_count_as_the_misses_that_they_are(slots: list[int]) -> None:
    async def main() -> list[float]:
        wanted, seconds = alternate(9), []
        for hints in ([], [experts for _, experts, _ in wanted[1:]]):
            world = expert_world(slots, experts=TOTAL, window=3)
            started = asyncio.get_running_loop().time()
            await world.run(wanted, hints=hints, seconds=LONG)
            seconds.append(asyncio.get_running_loop().time() - started)
            statistics = world.store.statistics()
            assert list(statistics.places.values()) == replayed(slots, wanted, experts=TOTAL, window=3)
            counts = statistics.hints
            assert (counts.useful, counts.early, counts.wasted) == (2 * len(hints), 2 * len(hints), 0)
            assert len(world.disk.reads) == len(set(world.disk.reads)) == 18
        return seconds

    without, hinted = run_virtual(main())
    assert without - hinted == pytest.approx(8.0, abs=2.0)  # a second for each of the reads that were hinted at


def test_a_hint_comes_behind_all_that_is_wanted_and_leaves_slots_for_it() -> None:
    async def main() -> None:
        world = expert_world([4], experts=TOTAL)
        await world.run([(0, [0, 1, 2, 3, 4], False), (1, [5], False)], hints=[[7, 5]])
        assert world.disk.reads == [*((0, part(index)) for index in range(5)), (1, "expert.7"), (1, "expert.5")]
        assert world.disk.began[(1, "expert.7")] < world.disk.began[(0, "expert.4")] + 1.0
        assert world.disk.began[(1, "expert.5")] > world.disk.began[(1, "expert.7")] + 1.0

    run_virtual(main())


@pytest.mark.parametrize("slots", [[4], [4, 4]])
def test_a_wrong_hint_takes_no_kept_experts_slot_and_gives_its_own_back(slots: list[int]) -> None:
    async def main() -> None:
        world = expert_world(slots, experts=TOTAL)
        wanted = [(0, [0, 1], False), (1, [5], True), (0, [0, 1], False)]
        await world.run(wanted, hints=[[7, 8, 9], [10, 11, 12]], seconds=LONG)
        assert world.given[-1] == [(0, "expert.0"), (0, "expert.1")]
        assert world.store.statistics().hints.wasted == 2  # one at a time has a slot
        assert list(world.store.statistics().places.values()) == replayed(slots, wanted, experts=TOTAL)

    run_virtual(main())


def test_a_wrong_hint_that_has_come_makes_room_for_the_next_one_at_once() -> None:
    async def main() -> None:
        read_seconds = iter([0.1, 3.0, *[0.1] * 9])
        world = expert_world([4], experts=TOTAL, read_seconds=lambda: next(read_seconds))
        await world.run([(0, [0], False), (1, [5], False), (0, [1], False)], hints=[[7], [9]], seconds=LONG)
        assert world.disk.began[(1, "expert.7")] + 3.0 <= world.disk.began[(0, "expert.9")] < 2 * LONG

    run_virtual(main())


@pytest.mark.parametrize("seconds", [0.1, 3 * LONG])
def test_the_gate_closes_when_more_hints_are_in_the_way_than_useful_and_opens_again(seconds: float) -> None:
    async def main() -> None:
        world = expert_world([8], experts=TOTAL, lanes=1)
        wanted = alternate(80)
        await world.run(wanted, hints=[[25, 26]] * 79, seconds=seconds)
        hints = world.store.statistics().hints
        if seconds > LONG:  # they come while the disk is idle
            assert (hints.in_the_way, hints.closed, hints.wasted) == (0, 0, hints.sent)
            return
        assert hints.closed == 1
        assert hints.sent < 79
        for _ in range(RESTS // 2):
            world.store.hint(0, [30, 31])
        asked = world.store.statistics().hints.asked
        world.store.hint(0, [30, 31])
        assert world.store.statistics().hints.asked == asked + 2

    run_virtual(main())


def test_where_the_disk_is_the_bound_the_gate_closes_though_more_hints_are_right_than_wrong() -> None:
    async def main() -> list[float]:
        seconds, wanted = [], alternate(80)
        for hints in ([], [[*experts, 25] for _, experts, _ in wanted[1:]]):
            world = expert_world([12], experts=TOTAL, lanes=1)
            started = asyncio.get_running_loop().time()
            await world.run(wanted, hints=hints, seconds=0.01)
            seconds.append(asyncio.get_running_loop().time() - started)
            counts = world.store.statistics().hints
            assert counts.closed == bool(hints)
            assert counts.early <= counts.in_the_way <= counts.useful
        return seconds

    without, hinted = run_virtual(main())
    assert hinted < 1.2 * without


def test_a_wrong_hint_on_its_way_keeps_its_room_until_it_has_come_or_is_wanted_after_all() -> None:
    hints, message = Hints(room=2), Message(1, "expert.3", 0, None, READY)
    hints.ask([(1, 3), (1, 4), (2, 5)])
    assert [hints.send() for _ in range(3)] == [(1, 3), (1, 4), None]
    assert hints.settle(1, [(1, 9)]) == ({}, {})
    assert hints.send() is None
    assert not hints.arrive((1, 3), message)  # type: ignore[arg-type]
    assert [hints.send() for _ in range(2)] == [(2, 5), None]
    assert hints.settle(1, [(1, 4)]) == ({(1, 4): None}, {})
    hints.ask([(3, 0)])
    assert hints.send() == (3, 0)
    assert hints.arrive((2, 5), message)  # type: ignore[arg-type]
    assert hints.settle(2, []) == ({}, {(2, 5): message})
