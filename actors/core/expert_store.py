"""Where the experts' line and the computations meet: what is wanted, what has come, and what is kept.

The program says what a layer wants once its router has spoken, takes what has come, and says when it was used. Slots
move in code without an await (rule 6). At any time the slot of an expert is kept, which `ExpertCache` decides, on its
way, or given to the program; only the first may last, and leaves at least one slot of each place to the others.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TypeAlias

from actors.core.budget import Budget, Slot
from actors.core.errors import LineError
from actors.core.event import Event
from actors.core.expert_cache import EvictionPolicy, Expert, Found, LeastRecentlyUsed, request
from actors.core.expert_counts import ExpertStatistics, Unions
from actors.core.expert_guesses import Guess, Guesses
from actors.core.expert_hints import Hints
from actors.core.expert_place import ExpertPlace
from actors.core.message import READY, GroupKey, Message
from actors.core.stretch import has_arrived

Split: TypeAlias = Callable[[Sequence[int], Sequence[int]], Collection[int]]
"""Of the experts of a layer that the device has not, those that host memory keeps and those that must be read: which
are computed on the host, from their slots there."""


class ExpertStore:
    """Keeps experts in the slots of `budgets`: of host memory and then of the device, or of the one that is both.

    Args:
        budgets: one for each place, each with one kind of slot.
        experts: how many there are in all layers.
        part: what the group of an expert is called, by its index.
        window: how many slots of a place are for what moves, see `window_of`.
        policy: makes what says, for one place, which expert goes first; None keeps none.

    Attributes:
        told: is called with each layer that wants experts, how many, which each place has, and how many are left on the
            host.
        computed: is called with experts whose computations were launched as one, and the event of their end.
        computed_on_host: the same of those that were left in host memory.
        misses: how many experts were wanted that no place had.
    """

    told: Callable[[int, int, Sequence[Found], int], None] | None = None
    computed: Callable[[Sequence[Message[Slot]], Event], None] | None = None
    computed_on_host: Callable[[Sequence[Message[Slot]], Event], None] | None = None

    def __init__(
        self,
        budgets: Sequence[Budget],
        experts: int,
        part: Callable[[int], str],
        window: int,
        policy: Callable[[], EvictionPolicy] | None = LeastRecentlyUsed,
    ) -> None:
        self._places = [ExpertPlace(budget, experts, policy, window) for budget in budgets]
        self._part = part
        self._indices: dict[str, int] = {}
        self._unions: dict[int, Unions] = {}
        self._room_ahead = min(place.for_moving for place in self._places) - 1
        self._hints = Hints(self._room_ahead)
        self._guesses = Guesses(self._hints.counts)
        self._unsent: deque[tuple[Expert, Slot | None]] = deque()
        self.misses = 0
        self._more = asyncio.Event()
        self._some = asyncio.Event()
        self._restart()

    def _restart(self) -> None:
        self._unsent.clear()
        self._wanted: set[Expert] = set()
        self._on_host: frozenset[Expert] = frozenset()
        self._there: list[Message[Slot]] = []
        self._ready: list[Message[Slot]] = []
        self._given: set[GroupKey] = set()

    def want(self, layer: int, experts: Sequence[int], *, streamed: bool = False, split: Split | None = None) -> int:
        """Let these experts of a layer come, each once; what is there is given at once. Returns how many are read now.

        With `streamed` they come for most of what a prompt needs, and evict nothing. Those that a `split` leaves on the
        host are given in their slots there, and count as used in that place alone. Raises LineError while anything that
        was wanted before is not used.
        """
        if self._wanted or self._there or self._ready or self._given:
            raise LineError(f"experts of layer {layer} are wanted before those of the last one are used")
        missing = [(layer, index) for index in experts if (layer, index) not in self._places[-1].cache]
        guessed, guessed_in_vain = self._guesses.settle(missing)
        hinted, hinted_in_vain = self._hints.settle(layer, [one for one in missing if one not in guessed])
        ahead = {**guessed, **hinted}
        self._on_host = self._left_on_host([one for one in missing if one not in ahead], split)
        hits = self._look_up(layer, experts, streamed=streamed)
        self._there = [_arrived(self._places[-1].kept.pop((layer, index))) for index in hits]
        for expert, message in (*guessed_in_vain.items(), *hinted_in_vain.items()):
            self._settle(expert, message)
        for expert, come in ahead.items():
            if come is not None:
                self._settle_source(expert, come)
                self._ready.append(_arrived(come))
        stays = [one for one in missing if one in self._on_host and one in self._places[0].kept]
        self._ready += [self._places[0].kept.pop(one) for one in stays]
        self._wanted = {one for one in missing if ahead.get(one) is None}.difference(stays)
        # What is in host memory goes first: it need not wait for a slot there.
        held = [(one, self._from_host(one)) for one in missing if one not in ahead and one in self._wanted]
        self._unsent += sorted(held, key=lambda one: one[1] is None)
        self._some.set()
        self._more.set()
        return sum(slot is None for _, slot in held)

    async def next(self, seq: int) -> tuple[int, str, Slot | None]:
        """Wait for an expert to send as message number `seq`: one that is wanted, else a hint, else a guess.

        Returns its layer and group, and the host slot that keeps it, if any.
        """
        while not self._unsent:
            if self._hints.slots + self._guesses.slots < self._room_ahead:
                if (hinted := self._hints.send()) is not None:
                    self._unsent.append((hinted, self._from_host(hinted)))
                    break
                if (guessed := self._guesses.next()) is not None:
                    self._unsent.append((guessed, slot := self._from_host(guessed)))
                    self._guesses.send(seq, kept=slot is not None)
                    break
            self._more.clear()
            await self._more.wait()
        (layer, index), slot = self._unsent.popleft()
        part = self._part(index)
        self._indices[part] = index
        return layer, part, slot

    def arrive(self, message: Message[Slot]) -> None:
        """Take an expert that is on its way to the place where it is computed."""
        expert, guess = self._expert(message), self._guesses.arrive(message.seq, message)
        if guess is not None and guess.wanted is None:  # it is held until its layer says what it wants
            self._more.set()
        elif guess is not None and not guess.goes_on() and not guess.kept:  # wrong, and not read whole
            self._drop(message)
            self._more.set()
        elif expert in self._wanted:
            self._wanted.remove(expert)
            self._settle_source(expert, message)
            self._ready.append(message)
            self._some.set()
        elif guess is not None or not self._hints.arrive(expert, message):  # wrong, but whole
            self._settle(expert, message)
            self._more.set()

    async def arrived(self, most: int | None = None) -> Sequence[Message[Slot]]:
        """Wait for wanted experts; returns all that have come or were there, and were not given yet, or the first.

        What has come is first, in order of arrival: others wait for the slots in which it came. Each message's event is
        the arrival of its bytes. Raises LineError where nothing more is wanted, and where what was given before is not
        used: its slot may be the one that the next expert waits for.
        """
        if self._given or not (self._ready or self._there or self._wanted):
            lacks = "what was given is not used" if self._given else "no more are wanted"
            raise LineError(f"experts are waited for, but {lacks}")
        while not (self._ready or self._there):
            self._some.clear()
            await self._some.wait()
        given = [*self._ready, *self._there][:most]
        come = len(self._ready)
        del self._there[: max(0, len(given) - come)], self._ready[: len(given)]
        self._given = {message.key for message in given}
        return given

    def used(self, messages: Sequence[Message[Slot]], event: Event) -> None:
        """Say that the computations of these experts end with `event`; READY where none was launched."""
        if messages and event is not READY:
            tell = self.computed_on_host if self._is_on_host(messages[0]) else self.computed
            if tell is not None:
                tell(messages, event)
        for message in messages:
            if message.key not in self._given:
                raise LineError(f"layer {message.layer} group {message.group!r} is used, but was not given")
            self._given.remove(message.key)
            if event is not READY:
                message.at.filled = event
            self._settle(self._expert(message), message)

    def hint(self, layer: int, experts: Sequence[int]) -> None:
        """Say which experts a layer will probably want, the likeliest first. Some come ahead, behind what is wanted."""
        self._hints.ask(self._not_here(layer, experts))
        self._more.set()

    def guess(self, layer: int, experts: Sequence[int]) -> None:
        """Say which experts the next layer that has some wants perhaps, the likeliest first: see `Guesses`."""
        self._guesses.ask(self._not_here(layer, experts))
        self._more.set()

    def guess_of(self, message: Message[Slot | None]) -> Guess | None:
        """The guess that a message on its way stands for; None for an expert that is wanted, or hinted at."""
        return self._guesses.of(message.seq)

    def stays_on_host(self, message: Message[Slot]) -> bool:
        """Whether an expert on its way is computed on the host, and so is not copied."""
        return self._expert(message) in self._on_host

    def fail(self) -> None:
        """Forget what was under way and what was kept; the lines have stopped, and the budgets have all slots back."""
        for place in self._places:
            place.forget()
        self._hints.forget()
        self._guesses.forget()
        self._restart()

    def kept(self) -> dict[str, int]:
        """How many slots of each budget hold an expert that is kept, and not in use."""
        return {place.name: len(place.kept) for place in self._places}

    def statistics(self) -> ExpertStatistics:
        """The counts up to now."""
        return ExpertStatistics(
            {place.name: {layer: replace(uses) for layer, uses in place.uses.items()} for place in self._places},
            {layer: replace(unions) for layer, unions in self._unions.items()},
            replace(self._hints.counts),
        )

    def _look_up(self, layer: int, experts: Sequence[int], *, streamed: bool) -> Sequence[int]:
        """Let the caches decide what is kept, and count what they find; returns what is where it is computed."""
        caches, on_host = [place.cache for place in self._places], {index for _, index in self._on_host}
        self._unions.setdefault(layer, Unions()).take_note(len(experts), len(on_host))
        found = request(caches, layer, experts, streamed=streamed, on_host=on_host)
        for place, one in zip(self._places, found, strict=True):
            place.take_note(layer, one, streamed=streamed)
        self.misses += len(found[0].misses)
        if self.told is not None:
            self.told(layer, len(experts), found, len(on_host))
        return found[-1].hits

    def _not_here(self, layer: int, experts: Sequence[int]) -> list[Expert]:
        """Those that may come ahead: not kept where they are computed, nor among those that the host computes now."""
        here = self._places[-1].cache
        each = [(layer, index) for index in experts]
        return [one for one in each if one not in here and one not in self._on_host]

    def _expert(self, message: Message[Slot]) -> Expert:
        return message.layer, self._indices[message.group]

    def _from_host(self, expert: Expert) -> Slot | None:
        """The slot of host memory that keeps an expert which is not on the device; from now on it travels."""
        kept = self._places[0].kept.pop(expert, None) if len(self._places) > 1 else None
        return None if kept is None else kept.at

    def _left_on_host(self, missing: Sequence[Expert], split: Split | None) -> frozenset[Expert]:
        """Those of a layer that the host computes."""
        if split is None or not missing:
            return frozenset()
        layer, kept = missing[0][0], self._places[0].kept
        here = [index for _, index in missing if (layer, index) in kept]
        away = [index for _, index in missing if (layer, index) not in kept]
        return frozenset((layer, index) for index in split(here, away))

    def _settle(self, expert: Expert, message: Message[Slot]) -> None:
        self._settle_source(expert, message)
        self._places[0 if self._is_on_host(message) else -1].settle(expert, message)

    def _is_on_host(self, message: Message[Slot]) -> bool:
        """Whether an expert is given in its slot in host memory, though it could be in one of the device."""
        return len(self._places) > 1 and message.at.place == self._places[0].name

    @staticmethod
    def _drop(message: Message[Slot]) -> None:
        """Give back the slots of an expert that was not read whole."""
        if (source := message.at.source) is not None:
            message.at.source = None
            source.release(after=source.filled)
        message.at.release(after=message.at.filled)

    def _settle_source(self, expert: Expert, message: Message[Slot]) -> None:
        """Keep the host slot that an expert came from, or give it back; its upload has been issued."""
        if (source := message.at.source) is not None:
            message.at.source = None
            self._places[0].settle(expert, message.moved(source, READY))


def _arrived(message: Message[Slot]) -> Message[Slot]:
    """The message of a kept expert, without the event of its arrival when that has come."""
    return message.moved(message.at, READY) if message.event is not READY and has_arrived(message) else message
