"""One place's slots that keep experts, and the cache that says which."""

from collections.abc import Callable

from actors.core.budget import Budget, Slot
from actors.core.errors import LineError
from actors.core.expert_cache import EvictionPolicy, Expert, ExpertCache, Found, kept_slots
from actors.core.expert_counts import Uses
from actors.core.message import Message


class ExpertPlace:
    """One place's slots that keep experts, and the cache that says which."""

    def __init__(self, budget: Budget, experts: int, policy: Callable[[], EvictionPolicy] | None, window: int) -> None:
        if len(budget.slots) != 1:
            raise LineError(f"the {budget.name} budget needs one kind of slot for all experts, has {len(budget.slots)}")
        slots = sum(budget.slots.values())
        self.name = budget.name
        self.cache = ExpertCache(kept_slots(slots, experts, window), None if policy is None else policy())
        self.for_moving = experts if slots >= experts else slots - self.cache.capacity
        self.kept: dict[Expert, Message[Slot]] = {}
        self.uses: dict[int, Uses] = {}

    def settle(self, expert: Expert, message: Message[Slot]) -> None:
        """Keep a slot that has been used, or give it back behind the last operation on it.

        A second slot of one expert is given back: a wrong guess that is still on its way may be wanted, and sent again.
        """
        if expert in self.cache and expert not in self.kept:
            self.kept[expert] = message
        else:
            message.at.release(after=message.at.filled)

    def take_note(self, layer: int, found: Found, *, streamed: bool) -> None:
        """Count what was found, and give back the slots of what is kept no more; one in use is given back later."""
        uses = self.uses.setdefault(layer, Uses())
        uses.take_note(len(found.hits), len(found.misses), streamed=streamed)
        for victim in found.victims:
            if (message := self.kept.pop(victim, None)) is not None:
                message.at.release(after=message.at.filled)

    def forget(self) -> None:
        """Keep nothing; the budget has taken the slots back."""
        self.cache.forget()
        self.kept.clear()
