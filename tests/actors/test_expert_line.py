"""Experts come when their layer wants them, each once, and stay as the cache says, with any number of slots."""

import asyncio
from collections import Counter
from functools import partial
from random import Random

import pytest
from support.expert_lines import Wanted, expert_world, part, replayed

from actors.core.errors import ActorFailed, LineError
from actors.core.expert_cache import ExpertCache, LeastFrequentlyUsed, LeastRecentlyUsed, Pinned
from actors.core.message import READY
from actors.core.trace import Trace
from pipeline.tools.simulation.loop import run_virtual

LAYERS, EXPERTS = 3, 6
TOTAL = LAYERS * EXPERTS


def passes(count: int, *, seed: int = 0, streamed: bool = False) -> list[Wanted]:
    """So many passes over three layers of six experts; every third pass is a prompt's, which wants nearly all."""
    random = Random(seed)
    return [
        (layer, sorted(random.sample(range(EXPERTS), 5 if streamed and number % 3 == 0 else random.randint(1, 3))),
         streamed and number % 3 == 0)
        for number in range(count)
        for layer in range(LAYERS)
    ]  # fmt: skip


POLICIES = {
    "lru": LeastRecentlyUsed,
    "lfu": LeastFrequentlyUsed,
    "pins": partial(Pinned, [(0, 1), (1, 2), (2, 3)]),
    "none": None,
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("places", [1, 2])
def test_every_number_of_slots_serves_and_counts_as_a_replay_does(places: int, policy: str) -> None:
    wanted = passes(7, streamed=True)

    async def main(slots: list[int]) -> None:
        world = expert_world(slots, experts=TOTAL, policy=POLICIES[policy])
        await world.run(wanted)
        assert not world.device.faults
        given = Counter(key for keys in world.given for key in keys)
        assert given == Counter((layer, part(index)) for layer, indices, _ in wanted for index in indices)
        counts = replayed(slots, wanted, experts=TOTAL, policy=POLICIES[policy])
        assert list(world.store.statistics().places.values()) == counts
        assert len(world.disk.reads) == sum(uses.misses + uses.streamed_misses for uses in counts[0].values())

    for count in range(1, TOTAL + 1):
        run_virtual(main([TOTAL + 1 - count, count][-places:]))


def test_where_all_have_a_slot_each_is_read_once() -> None:
    async def main() -> None:
        for slots in ([TOTAL], [TOTAL, 2], [2, TOTAL]):
            world = expert_world(slots, experts=TOTAL)
            await world.run(passes(9, streamed=True))
            assert max(Counter(world.disk.reads).values()) == 1

    run_virtual(main())


def test_hits_are_computed_while_misses_are_read() -> None:
    async def main() -> None:
        world = expert_world([4, 3], experts=TOTAL)
        await world.run([(0, [0], False), (1, [2], False), (0, [0, 1], False), (1, [1, 2], False)])
        # On the device two are kept, in host memory too: 0 of layer 0 is there at once.
        assert world.given[2:4] == [[(0, "expert.0")], [(0, "expert.1")]]
        world = expert_world([4, 2], experts=TOTAL)
        await world.run([(0, [0], False), (0, [1], False), (0, [0, 1, 2], False)])
        # One is kept on the device, and comes first; then comes what host memory has; what is read comes last.
        assert world.given[2:] == [[(0, "expert.1")], [(0, "expert.0")], [(0, "expert.2")]]

    run_virtual(main())


def test_what_comes_is_computed_before_what_was_there() -> None:
    """Else the disk stands still for want of slots, until all that was there is computed."""

    async def main(at_once: int) -> float:
        world = expert_world([16], experts=TOTAL * 4, window=4, lanes=1)
        started = asyncio.get_running_loop().time()
        await world.run([(0, range(12), False), (0, range(32), True)], seconds=0.7, at_once=at_once)
        return asyncio.get_running_loop().time() - started

    alone = 12 + 0.7 + 20 + 0.7  # a second for each read, and the last product of both
    assert alone <= run_virtual(main(2)) < alone + 2.5
    assert run_virtual(main(TOTAL)) > alone + 6


def test_what_is_streamed_evicts_nothing() -> None:
    async def main() -> None:
        world = expert_world([4], experts=TOTAL)
        await world.run([(0, [0, 1], False), (0, [2, 3, 4, 5], True), (0, [0, 1], False)])
        assert world.given[-1] == [(0, "expert.0"), (0, "expert.1")]
        # It fills what is free, and goes before what decoding uses.
        world = expert_world([8], experts=TOTAL)
        await world.run([(0, [0, 1], False), (0, [2, 3], True), (0, [4], False), (0, [0, 1], False), (0, [2], True)])
        assert world.store.statistics().places["expert host"][0].hits == 2
        assert world.store.statistics().places["expert host"][0].streamed_hits == 1

    run_virtual(main())


def test_of_what_is_streamed_each_layer_keeps_as_much() -> None:
    """Else one has nothing to read while it is computed, and another must read all."""

    async def main() -> None:
        world = expert_world([8], experts=TOTAL)
        wanted = [(layer, [0, 1, 2, 3, 4], True) for layer in (0, 1)]
        await world.run(wanted * 3)
        hits = {layer: uses.streamed_hits for layer, uses in world.store.statistics().places["expert host"].items()}
        assert hits == {0: 2 * 2, 1: 2 * 2}

    run_virtual(main())


def test_what_was_kept_before_a_failure_counts_no_more() -> None:
    """Else layers that kept more then would have what they stream now taken by others."""
    cache = ExpertCache(4, LeastRecentlyUsed())
    cache.request(0, [0, 1, 2, 3], streamed=True)
    cache.forget()
    cache.request(0, [0, 1], streamed=True)
    cache.request(1, [0, 1], streamed=True)
    assert not cache.request(1, [2], streamed=True).victims


@pytest.mark.parametrize("slots", [[3], [3, 2]])
def test_a_lost_read_ends_the_run_by_name_and_the_next_one_starts_anew(slots: list[int]) -> None:
    async def main() -> None:
        world = expert_world(slots, experts=TOTAL)
        world.disk.lost.add((1, "expert.4"))
        with pytest.raises(ActorFailed, match=r"^expert_reader failed at layer 1 group 'expert.4': OSError: lost"):
            await world.run([(0, [0, 1, 2], False), (1, [0, 2, 4], False)])
        world.disk.reads.clear()
        await world.run(wanted := [(0, [0, 1, 2], False), (1, [0, 2, 4], False)])
        assert len(world.disk.reads) == sum(len(indices) for _, indices, _ in wanted)
        assert not world.device.faults

    run_virtual(main())


def test_a_lost_copy_is_the_uploaders_whatever_its_computation_says() -> None:
    async def main() -> None:
        world = expert_world([6, 6], experts=TOTAL)
        world.device.lost |= {(1, "expert.2"), (1, "expert.4")}  # what is lost behind the first is not told of later
        with pytest.raises(
            ActorFailed, match=r"^expert_uploader failed at layer 1 group 'expert.2': ZeroDivisionError"
        ):
            await world.run([(0, [0, 1, 2], False), (1, [0, 2, 4], False), (2, [0], False)])
        world.device.faults.clear()  # what was computed with lost bytes is nobody's
        await world.run([(1, [0, 2, 4], False)])
        assert not world.device.faults

    run_virtual(main())


def test_what_was_given_is_used_before_more_is_waited_for() -> None:
    async def main() -> None:
        store = expert_world([2], experts=TOTAL).store
        with pytest.raises(LineError, match="no more are wanted"):
            await store.arrived()
        world = expert_world([2], experts=TOTAL)

        async def careless() -> None:
            world.store.want(0, [0, 1])
            given = await world.store.arrived()
            with pytest.raises(LineError, match="what was given is not used"):
                await world.store.arrived()
            with pytest.raises(LineError, match="wanted before those of the last one are used"):
                world.store.want(1, [0])
            world.store.used(given, READY)
            with pytest.raises(LineError, match=r"'expert\.0' is used, but was not given"):
                world.store.used(given, READY)

        world.compute = lambda wanted: careless()  # type: ignore[method-assign,assignment]
        await world.run([])

    run_virtual(main())


@pytest.mark.anyio
async def test_on_a_real_loop_too() -> None:
    world = expert_world([3], experts=TOTAL, read_seconds=lambda: 0.001)
    world.device.compute = lambda messages, seconds: READY  # type: ignore[method-assign]
    await world.run(passes(3))
    assert world.store.statistics().unions[0].passes == 3


def test_computations_of_experts_are_traced_and_counted() -> None:
    async def main() -> None:
        world = expert_world([8], experts=TOTAL, trace=(trace := Trace(recording=True)))
        await world.run([(0, [0, 1], False), (1, [2], False), (0, [0, 1], False)], seconds=0.5)
        statistics = world.line.statistics().actors["expert_keeper"]
        assert statistics.messages == 3  # those of the last layer had come before
        assert statistics.busy_seconds == pytest.approx(0.5 * len(world.given))
        spans = [span for span in trace.spans if (span.actor, span.what) == ("expert_keeper", "work")]
        assert [span.key for span in spans] == [keys[0] for keys in world.given]

    run_virtual(main())
