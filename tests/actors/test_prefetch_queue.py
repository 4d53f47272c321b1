"""What a triggered policy has asked for: who goes first, what fits, and that every group goes once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import pytest
from support.prefetch_queues import PLENTY, open_queue
from support.scripted_policy import ScriptedPolicy

from actors.core.ports import Ask, Half, Priority
from actors.core.prefetch import PrefetchQueue
from pipeline.tools.simulation.loop import run_virtual

DEMAND, HIGH, MEDIUM = Priority.DEMAND, Priority.HIGH, Priority.MEDIUM
ATTN_1, FFN_1, ATTN_2, FFN_2 = 2, 3, 4, 5
"""Positions in the first pass."""


async def sent(queue: PrefetchQueue) -> list[int]:
    """All that goes now, none of which lands."""
    positions: list[int] = []

    async def take_all() -> None:
        while True:
            positions.append(await queue.take())

    taking = asyncio.create_task(take_all())
    await asyncio.sleep(1)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    return positions


def virtual(body: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Let a test run on virtual time."""

    def test() -> None:
        run_virtual(body())

    test.__name__, test.__doc__ = body.__name__, body.__doc__  # type: ignore[attr-defined]
    return test


@virtual
async def test_demand_goes_first_then_high_then_medium_and_among_equals_the_oldest() -> None:
    warmup = [Ask("ffn", 0), Ask("ffn", 2, HIGH), Ask("attn", 1), Ask("ffn", 1, HIGH)]
    assert await sent(open_queue(ScriptedPolicy(first=warmup))) == [0, FFN_2, FFN_1, 1, ATTN_1]


@virtual
async def test_asking_again_moves_a_group_forward_and_never_back() -> None:
    warmup = [
        *(Ask("ffn", 1), Ask("attn", 1, HIGH), Ask("attn", 2, HIGH), Ask("ffn", 2), Ask("ffn", 0)),
        *(Ask("ffn", 1, HIGH), Ask("attn", 1, MEDIUM), Ask("ffn", 2)),
    ]
    assert await sent(open_queue(ScriptedPolicy(first=warmup))) == [0, FFN_1, ATTN_1, ATTN_2, FFN_2, 1], (
        "who asked first keeps its age"
    )


@virtual
async def test_a_group_that_nobody_asked_for_is_in_demand_when_the_half_before_has_ended() -> None:
    queue = open_queue(ScriptedPolicy(lambda half: [Ask("ffn", 2), Ask("attn", 2, HIGH)]))
    assert await sent(queue) == [0]
    queue.arrived()
    queue.started(0)
    queue.ended(0)
    assert await sent(queue) == [1, ATTN_2, FFN_2]


@virtual
async def test_a_group_that_was_asked_for_keeps_its_place_when_the_half_before_has_ended() -> None:
    queue = open_queue(ScriptedPolicy(lambda half: [Ask("ffn", 0), Ask("attn", 1, HIGH)]))
    await queue.take()
    queue.started(0)
    queue.ended(0)
    assert await sent(queue) == [ATTN_1, 1]


@pytest.mark.parametrize("links", [1, 2, 3])
def test_no_more_are_on_their_way_than_there_are_links(links: int) -> None:
    async def main() -> None:
        queue = open_queue(
            ScriptedPolicy(first=[Ask(kind, layer) for layer in range(3) for kind in PLENTY]), links=links
        )
        assert await sent(queue) == list(range(links))
        for position in range(links, 6):
            assert await sent(queue) == []
            queue.arrived()
            assert await sent(queue) == [position]

    run_virtual(main())


@virtual
async def test_what_comes_while_all_links_are_taken_can_still_overtake() -> None:
    queue = open_queue(ScriptedPolicy(lambda half: [Ask("ffn", 0, HIGH)], first=[Ask("attn", 1)]), links=1)
    taking = asyncio.create_task(queue.take())
    await taking
    waiting = asyncio.create_task(queue.take())
    await asyncio.sleep(1)
    assert not waiting.done()
    queue.started(0)
    queue.arrived()
    assert await waiting == 1


@virtual
async def test_nothing_is_sent_that_is_on_its_way_or_computed() -> None:
    everything = [Ask(kind, layer, HIGH) for layer in range(3) for kind in PLENTY]
    queue = open_queue(ScriptedPolicy(lambda half: everything, first=everything[:2]))
    assert await sent(queue) == [0, 1]
    queue.started(0)
    queue.ended(0)
    assert await sent(queue) == [2, 3, 4, 5], "0 is computed, 1 on its way"
    for position in range(1, 5):
        queue.started(position)
        queue.ended(position)
        assert await sent(queue) == []


@virtual
async def test_what_lies_beyond_the_pass_is_ignored_and_not_counted() -> None:
    def asks(half: Half) -> Sequence[Ask]:
        return [Ask("attn", half.layer + 1), Ask("ffn", 3), Ask("attn", -1), Ask("ffn", -2)]

    queue = open_queue(ScriptedPolicy(asks, first=[Ask("ffn", 9)]))
    goes = []
    for position in range(6):
        goes.append(await sent(queue))
        queue.started(position)
        goes.append(await sent(queue))
        queue.ended(position)
    assert goes == [[0], [ATTN_1], [1], [], [], [ATTN_2], [FFN_1], [], [], [], [FFN_2], []]
    assert await sent(queue) == [6], "the next pass begins when this one has ended"
    assert queue.asked_at == {"attn": 1, "ffn": 1}


async def test_a_slot_that_is_about_to_be_freed_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """Micro-batches: the second slice of the head starts while the first still computes, and holds its slot."""
    queue = open_queue(
        ScriptedPolicy(lambda half: [Ask("ffn", half.layer + 1)]), {"attn": 2, "ffn": 2}, layers=1, slices=3
    )
    queue.started(1)
    queue.started(2)
    assert not caplog.records
    queue.ended(1)
    queue.started(3)
    assert not caplog.records


@virtual
async def test_the_slices_of_the_head_follow_as_further_ffns() -> None:
    seen: list[Half] = []

    def asks(half: Half) -> Sequence[Ask]:
        seen.append(half)
        return [Ask("ffn", half.layer + 1)]

    queue = open_queue(ScriptedPolicy(asks), layers=1, slices=2)
    assert await sent(queue) == [0]
    queue.started(0)
    assert await sent(queue) == [2], "head.0"
    queue.ended(0)
    assert await sent(queue) == [1]
    queue.started(1)
    queue.ended(1)
    queue.started(2)
    assert await sent(queue) == [3], "head.1"
    assert [(half.kind, half.layer) for half in seen] == [("attn", 0), ("ffn", 0), ("ffn", 1)]


@virtual
async def test_a_policy_is_told_how_many_groups_are_held() -> None:
    held: list[int] = []

    def asks(half: Half) -> Sequence[Ask]:
        held.append(half.held)
        return [Ask("ffn", 0), Ask("attn", 1), Ask("ffn", 1)]

    queue = open_queue(ScriptedPolicy(asks))
    await sent(queue)
    queue.started(0)
    await sent(queue)
    queue.ended(0)
    queue.started(1)
    queue.ended(1)
    queue.started(2)
    assert held == [1, 3, 2], "that which computes is held, that which has ended is not"


@virtual
async def test_what_does_not_fit_is_refused_and_can_be_asked_for_again() -> None:
    queue = open_queue(ScriptedPolicy(lambda half: [Ask("attn", 2), Ask("ffn", 1)]), {"attn": 2, "ffn": 1})
    await queue.take()
    queue.started(0)
    assert await sent(queue) == [], "attn 1 comes before attn 2, ffn 0 before ffn 1"
    queue.ended(0)
    assert await sent(queue) == [1]
    queue.started(1)
    assert await sent(queue) == [ATTN_2], "attn 1 and 2 fit, now that attn 0 has ended"
    queue.ended(1)
    assert await sent(queue) == [ATTN_1]
    queue.started(2)
    assert await sent(queue) == [FFN_1]


@virtual
async def test_one_slot_for_both_kinds_takes_them_one_after_the_other() -> None:
    everything = [Ask(kind, layer) for layer in range(3) for kind in PLENTY]
    queue = open_queue(ScriptedPolicy(lambda half: everything, first=everything), {"ffn": 1})
    for position in range(12):
        assert await sent(queue) == [position]
        queue.arrived()
        queue.started(position)
        queue.ended(position)


async def test_a_refusal_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    queue = open_queue(
        ScriptedPolicy(lambda half: [Ask("ffn", half.layer + 1)], [Ask("attn", 2)]), {"attn": 2, "ffn": 1}
    )
    queue.restart()
    queue.started(0)
    queue.started(2)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("penstock", logging.WARNING)
    assert (
        "policy scripted asks for attn of layer 2, for which there is no slot yet: raise gpu_groups" in record.message
    )


@virtual
async def test_what_fits_is_asked_for_in_silence() -> None:
    """The fullest that can be: D ahead of either kind, with D + 1 slots of each."""
    queue = open_queue(
        ScriptedPolicy(lambda half: [Ask(half.kind, half.layer + ahead) for ahead in (1, 2)]), {"attn": 3, "ffn": 3}
    )
    for position in (0, 1):
        assert position in await sent(queue)
        queue.started(position)
        if position == 0:
            queue.ended(position)
    assert await sent(queue) == [FFN_1, FFN_2]
    assert not queue._warned


@virtual
async def test_asks_belong_to_the_pass_of_the_half_that_started() -> None:
    queue = open_queue(ScriptedPolicy(lambda half: [Ask("ffn", half.layer), Ask("attn", half.layer + 1)]), layers=2)
    goes = []
    for position in range(8):
        goes.append(await sent(queue))
        queue.started(position)
        goes.append(await sent(queue))
        queue.ended(position)
    one_pass = [[1, 2], [], [], [], [3], [], []]
    assert goes == [[0], *one_pass, [4], *([position + 4 for position in some] for some in one_pass)]


@virtual
async def test_a_new_run_begins_with_nothing_sent_or_computed_but_the_warm_up() -> None:
    asks = [Ask("ffn", 2, HIGH), Ask("ffn", 1)]
    queue = open_queue(ScriptedPolicy(lambda half: asks, first=[Ask("ffn", 0)]), links=2)
    assert await sent(queue) == [0, 1]
    queue.started(0)
    queue.ended(0)
    queue.started(1)
    queue.arrived()
    queue.restart()
    assert await sent(queue) == [0, 1], "both links are free again, and nothing is left of what was asked for"
    queue.arrived()
    queue.arrived()
    queue.started(0)
    assert await sent(queue) == [FFN_2, FFN_1]


@virtual
async def test_an_end_that_is_told_late_takes_nothing_back() -> None:
    """Two computations may have ended before the loop hears of the first."""
    queue = open_queue(ScriptedPolicy(first=[Ask("ffn", 0), Ask("attn", 1)]))
    assert await sent(queue) == [0, 1, ATTN_1]
    for position in (0, 1):
        queue.started(position)
    queue.ended(1)
    queue.ended(0)
    assert await sent(queue) == [], "1 was sent, computed, and is over; 2 is on its way"
