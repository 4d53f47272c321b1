"""What a program leaves on the host is given in its slot there, is not copied, and keeps the slot until it is used."""

from collections.abc import Collection, Sequence

import pytest
from support.expert_lines import ExpertWorld, expert_world

from actors.core.expert_store import Split
from pipeline.tools.simulation.loop import run_virtual

TOTAL = 18


def all_of_them(kept: Sequence[int], read: Sequence[int]) -> Collection[int]:
    return {*kept, *read}


def noting(asked: list[tuple[list[int], list[int]]], left: Split = all_of_them) -> Split:
    def split(kept: Sequence[int], read: Sequence[int]) -> Collection[int]:
        asked.append(([*kept], [*read]))
        return left(kept, read)

    return split


def copies(world: ExpertWorld) -> int:
    """How many device slots were ever held."""
    return world.budgets[1].statistics().peak


def test_it_is_not_copied_and_the_device_is_not_asked() -> None:
    async def main() -> None:
        world, asked = expert_world([8, 4], experts=TOTAL), list[tuple[list[int], list[int]]]()
        await world.run([(0, [0, 1], False), (1, [2], False), (0, [1, 3], False)], split=noting(asked))
        assert asked == [([], [0, 1]), ([], [2]), ([1], [3])]
        assert copies(world) == 0
        assert world.disk.reads == [(0, "expert.0"), (0, "expert.1"), (1, "expert.2"), (0, "expert.3")]
        assert world.given[-2:] == [[(0, "expert.1")], [(0, "expert.3")]], "what is kept is given at once"
        uses = world.store.statistics().places
        assert [(one.hits, one.misses) for one in uses["expert host"].values()] == [(1, 3), (0, 1)]
        assert [(one.hits, one.misses) for one in uses["expert device"].values()] == [(0, 0), (0, 0)]
        assert {layer: one.on_host for layer, one in world.store.statistics().unions.items()} == {0: 4, 1: 1}
        assert not world.device.faults

    run_virtual(main())


def test_the_others_are_copied_and_what_the_device_has_is_no_question() -> None:
    async def main() -> None:
        world, asked = expert_world([8, 8], experts=TOTAL), list[tuple[list[int], list[int]]]()
        odd = noting(asked, lambda kept, read: {index for index in (*kept, *read) if index % 2})
        await world.run([(0, [0, 1, 2], False), (0, [0, 1, 2], False)], split=odd)
        assert asked == [([], [0, 1, 2]), ([1], [])]
        assert copies(world) == 2
        assert world.store.statistics().places["expert device"][0].hits == 2

    run_virtual(main())


def test_one_slot_in_each_place_is_enough() -> None:
    async def main() -> None:
        world = expert_world([1, 1], experts=TOTAL)
        some = noting([], lambda kept, read: {index for index in (*kept, *read) if index < 2})
        await world.run([(layer, [0, 1, 2], False) for layer in (0, 1, 2, 0)], split=some, seconds=0.7)
        assert len(world.disk.reads) == 12
        assert not world.device.faults

    run_virtual(main())


def test_what_comes_ahead_is_copied() -> None:
    async def main() -> None:
        world, asked = expert_world([8, 8], experts=TOTAL), list[tuple[list[int], list[int]]]()
        await world.run([(0, [0], False), (1, [2, 3], False)], hints=[[2]], split=noting(asked), seconds=3.0)
        assert asked == [([], [0]), ([], [3])]
        assert copies(world) == 1
        assert world.store.statistics().hints.useful == 1

    run_virtual(main())


@pytest.mark.parametrize("ahead", ["hints", "guesses"])
def test_what_is_left_there_is_not_sent_ahead_for_the_same_layer(ahead: str) -> None:
    """It would be handed on without a copy, and count as what the device has."""

    async def main() -> None:
        world, asked = expert_world([8, 8], experts=TOTAL), list[tuple[list[int], list[int]]]()
        await world.run([(0, [1], False)] * 3, split=noting(asked), seconds=3.0, **{ahead: [[1], [1]]})
        assert asked == [([], [1]), ([1], []), ([1], [])]
        assert world.disk.reads == [(0, "expert.1")]
        assert not world.device.faults

    run_virtual(main())
