"""A wrong guess that comes late is settled at once: no slot is lost when its expert is guessed or wanted meanwhile."""

import asyncio
import time

from actors.core.budget import Budget, Slot
from actors.core.expert_store import ExpertStore
from actors.core.message import READY, Message


class Travel:
    """A store whose experts travel when the test says so."""

    def __init__(self) -> None:
        names = {"expert host": 8, "expert device": 4}
        self.budgets = [
            Budget(name, {"expert": [object()] * count}, time.perf_counter) for name, count in names.items()
        ]
        self.store = ExpertStore(self.budgets, 40, lambda index: f"expert.{index}", window=2)
        self.seq = 0

    async def leave(self) -> tuple[Message[Slot], bool]:
        """Send the next one on its way; also returns whether host memory keeps it."""
        layer, group, source = await self.store.next(self.seq)
        slot = await self.budgets[1].acquire("expert")
        slot.source = source or await self.budgets[0].acquire("expert")
        self.seq += 1
        return Message(layer, group, self.seq - 1, slot, READY), source is not None

    async def use(self, index: int) -> None:
        """Let the layer use one expert, which comes at once if it is not there."""
        self.store.want(0, [index])
        if self.store._wanted:
            self.store.arrive((await self.leave())[0])
        self.store.used(await self.store.arrived(), READY)

    def no_slot_is_lost(self) -> bool:
        return [budget.statistics().held for budget in self.budgets] == [*self.store.kept().values()]


async def late_guess(travel: Travel) -> Message[Slot]:
    """A wrong guess of an expert that host memory keeps, still on its way."""
    for index in (7, 1, 2):
        await travel.use(index)
    travel.store.guess(0, [7])
    message, kept = await travel.leave()
    assert kept
    await travel.use(1)
    return message


def test_it_goes_back_and_may_be_guessed_again() -> None:
    async def main() -> None:
        travel = Travel()
        travel.store.arrive(await late_guess(travel))
        assert travel.no_slot_is_lost()
        travel.store.guess(0, [7])
        message, kept = await travel.leave()
        assert kept
        travel.store.arrive(message)
        await travel.use(7)
        assert travel.no_slot_is_lost()

    asyncio.run(main())


def test_it_may_be_wanted_before_it_comes() -> None:
    async def main() -> None:
        travel = Travel()
        message = await late_guess(travel)
        travel.store.want(0, [7])
        again, kept = await travel.leave()
        assert not kept
        travel.store.arrive(message)
        assert await travel.store.arrived() == [message]
        travel.store.used([message], READY)
        travel.store.arrive(again)
        await travel.use(1)
        assert travel.no_slot_is_lost()

    asyncio.run(main())
