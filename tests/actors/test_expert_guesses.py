"""Guesses are read while the disk stands still; a wrong one ends with the step under way, and its slot comes back."""

import asyncio

import pytest
from support.expert_lines import Wanted, expert_world, part, replayed

from actors.core.errors import ActorFailed
from actors.core.expert_counts import HintCounts
from actors.core.expert_guesses import PAYS, Guesses
from actors.core.expert_hints import JUDGED, RESTS
from actors.core.message import READY, Message
from pipeline.tools.simulation.loop import run_virtual

TOTAL = 40
GAP = 0.53
"""Seconds from the last read of a layer to the first of the next one: five of the ten steps of a read, and a bit."""


def alternate(count: int) -> list[Wanted]:
    return [(step % 2, [step // 2 * 2 % 20, (step // 2 * 2 + 1) % 20], False) for step in range(count)]


@pytest.mark.parametrize("slots", [[8], [8, 8], [20, 6]])
def test_a_right_guess_begins_in_the_gap_and_is_read_once(slots: list[int]) -> None:
    async def main() -> list[float]:
        wanted, seconds = alternate(9), []
        for guesses in ([], [[experts[0]] for _, experts, _ in wanted[1:]]):
            world = expert_world(slots, experts=TOTAL, window=3, lanes=1)
            started = asyncio.get_running_loop().time()
            await world.run(wanted, guesses=guesses, seconds=GAP)
            seconds.append(asyncio.get_running_loop().time() - started)
            counts = world.store.statistics().hints
            assert list(world.store.statistics().places.values()) == replayed(slots, wanted, experts=TOTAL, window=3)
            assert (counts.useful, counts.early, counts.wasted) == (len(guesses), 0, 0)
            assert len(world.disk.reads) == len(set(world.disk.reads)) == 18
            assert not world.device.faults
        return seconds

    without, guessed = run_virtual(main())
    copy_seconds = 0.1 if len(slots) > 1 else 0.0
    assert without - guessed == pytest.approx(8 * (GAP + copy_seconds), abs=0.1)


@pytest.mark.parametrize("slots", [[8], [8, 8]])
def test_a_wrong_guess_delays_what_is_wanted_by_a_step_at_most(slots: list[int]) -> None:
    async def main() -> list[float]:
        wanted, seconds = alternate(9), []
        for guesses in ([], [[30, 31, 32]] * 8):
            world = expert_world(slots, experts=TOTAL, window=4, lanes=1)
            started = asyncio.get_running_loop().time()
            await world.run(wanted, guesses=guesses, seconds=GAP)
            seconds.append(asyncio.get_running_loop().time() - started)
            assert not world.device.faults
            reads = [key for key in world.disk.reads if key[1] == part(30)]
            assert len(reads) == len(guesses)
            assert len(world.disk.reads) == 18 + len(reads)  # the other one has not begun
        return seconds

    without, guessed = run_virtual(main())
    assert 0.1 < guessed - without <= 8 * 0.1 + 0.01


def test_a_guess_waits_until_nothing_that_is_wanted_is_read() -> None:
    async def main() -> None:
        world = expert_world([8], experts=TOTAL)
        await world.run([(0, [0, 1, 2], False), (1, [5], False)], guesses=[[5]], seconds=GAP)
        assert world.disk.began[(1, part(5))] >= world.disk.began[(0, part(2))] + 1.0
        assert world.store.statistics().hints.useful == 1

    run_virtual(main())


def test_a_right_guess_that_has_not_begun_is_read_at_once_when_it_is_wanted() -> None:
    async def main() -> None:
        world = expert_world([8], experts=TOTAL)
        world.disk.reading = 1  # something else, for ever
        started = asyncio.get_running_loop().time()
        await world.run([(0, [0], False), (1, [5], False)], guesses=[[5, 7]], seconds=GAP)
        assert asyncio.get_running_loop().time() - started < 4.0
        assert world.disk.reads == [(0, part(0)), (1, part(5))]

    run_virtual(main())


@pytest.mark.parametrize("slots", [[4], [4, 4], [9, 4]])
def test_what_was_guessed_wrong_and_is_wanted_next_is_read_whole(slots: list[int]) -> None:
    """Its unread bytes may still be on their way, in a message of the same name."""

    async def main() -> None:
        world = expert_world(slots, experts=TOTAL, copy_seconds=3.0)
        wanted = [(0, [0], False), (1, [5], False), (1, [7], False), (1, [7], False)]
        await world.run(wanted, guesses=[[7], [8], [9]], seconds=GAP)
        assert world.given[-1] == world.given[-2] == [(1, part(7))]
        assert world.disk.reads.count((1, part(7))) == 2
        assert not world.device.faults
        assert list(world.store.statistics().places.values()) == replayed(slots, wanted, experts=TOTAL)

    run_virtual(main())


def test_a_wrong_guess_that_host_memory_keeps_goes_back_there() -> None:
    async def main() -> None:
        world = expert_world([20, 4], experts=TOTAL, window=2)
        wanted = [(0, [0, 1], False), (0, [2, 3], False), (1, [5], False), (0, [0], False)]
        await world.run(wanted, guesses=[[], [], [0]], seconds=GAP)
        wrong = [(0, [0, 1], False), (0, [2, 3], False), (1, [5], False), (0, [1], False), (0, [0], False)]
        await world.run(wrong, guesses=[[], [], [0], []], seconds=GAP)
        assert world.disk.reads.count((0, part(0))) == 2  # once in each run
        assert world.store.statistics().hints.useful == 1

    run_virtual(main())


def test_the_gate_of_a_layer_closes_when_guesses_in_the_way_cost_more_than_right_ones_save() -> None:
    guesses, seq, right = Guesses(counts := HintCounts()), 0, JUDGED // (PAYS + 1)
    for step in range(JUDGED):
        guesses.ask([(1, step)])
        assert guesses.next() == (1, step)
        guesses.send(seq := seq + 1, kept=False)
        guess = guesses.of(seq)
        assert guess is not None
        guess.begun = True
        guesses.settle([(1, step)] if step < right else [])
        assert guesses.arrive(seq, Message(1, "expert", seq, None, READY)) is guess  # type: ignore[arg-type]
    assert (counts.closed, counts.useful, counts.in_the_way) == (1, right, JUDGED - right)
    guesses.ask([(1, 0)] * RESTS)
    assert guesses.next() is None
    guesses.ask([(2, 0)])
    assert guesses.next() == (2, 0), "other layers have gates of their own"
    guesses.ask([(1, 0)])
    assert guesses.next() == (1, 0)
    assert guesses.slots == 0


def test_a_right_guess_that_is_still_on_its_way_keeps_no_other_back() -> None:
    guesses = Guesses(HintCounts())
    guesses.ask([(1, 0), (1, 1), (1, 2)])
    for seq in range(2):
        assert guesses.next() == (1, seq)
        guesses.send(seq, kept=False)
    assert guesses.next() is None
    guesses.settle([(1, 0), (1, 1)])
    guesses.ask([(2, 5)])
    assert guesses.next() == (2, 5)


@pytest.mark.parametrize("slots", [[4], [4, 4], [9, 4]])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_guess_that_cannot_be_read_is_a_failure_where_it_is_right(wanted: bool, slots: list[int]) -> None:
    """And keeps nothing up where it is wrong: what is wanted next has its slot."""

    async def main() -> None:
        world = expert_world(slots, experts=TOTAL, window=3)
        world.disk.lost.add((1, part(7)))
        layers: list[Wanted] = [(0, [0], False), (1, [7] if wanted else [5, 8], False), (0, [1, 2], False)]
        run = world.run(layers, guesses=[[7, 8]], seconds=5.0)
        if wanted:
            with pytest.raises(ActorFailed, match=r"^expert_reader failed at layer 1 group 'expert.7': OSError: lost"):
                await run
        else:
            await run
        assert (1, part(7)) in world.disk.reads
        assert not world.device.faults

    run_virtual(main())
