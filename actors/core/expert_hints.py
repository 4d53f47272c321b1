"""Look-ahead: experts that come before they are wanted, as long as that pays.

A hint is sent behind all that is wanted, and its slot is one of those for what moves, of which one at least is left to
what is wanted. So a wrong hint costs the rest of a read under way, and no kept expert its slot.
"""

from collections.abc import Sequence

from actors.core.budget import Slot
from actors.core.expert_cache import Expert
from actors.core.expert_counts import HintCounts
from actors.core.message import Message

JUDGED = 64
"""A gate looks at so many hints at a time."""
RESTS = 1024
"""Once it is closed, so many hints are dropped before it opens again."""


class HintGate:
    """Lets hints through as long as more of them pay than are in the way of what is wanted."""

    def __init__(self) -> None:
        self._rests = self._paid = self._in_the_way = self._settled = 0

    def shuts_out(self, hints: int) -> bool:
        """Whether these hints, so many, are dropped."""
        if self._rests <= 0:
            return False
        self._rests -= hints
        return True

    def judge(self, paid: int, in_the_way: int, settled: int) -> bool:
        """Count what became of `settled` hints; returns whether the gate closes now."""
        self._paid, self._in_the_way = self._paid + paid, self._in_the_way + in_the_way
        self._settled += settled
        if self._settled < JUDGED:
            return False
        closes = self._in_the_way > self._paid
        if closes:
            self._rests = RESTS
        self._paid = self._in_the_way = self._settled = 0
        return closes


class Hints:
    """The experts that were asked for ahead, of which `room` may have slots, and the gate.

    An early hint saves a read that a computation would wait for, as it is read while the disk is idle. A wasted hint
    costs nothing while the disk is idle, but a whole read where other reads wait behind it. So the gate closes when
    more hints were in the way than early: then the disk is the bound.
    """

    def __init__(self, room: int) -> None:
        self.counts = HintCounts()
        self._room = room
        self._gate = HintGate()
        self.forget()

    @property
    def slots(self) -> int:
        """How many slots hold a hinted expert, or will when it has come."""
        return len(self._ahead) + len(self._wrong)

    def forget(self) -> None:
        """Drop all; the lines have stopped."""
        self._asked: dict[Expert, None] = {}
        self._ahead: dict[Expert, Message[Slot] | None] = {}
        self._wrong: set[Expert] = set()

    def ask(self, experts: Sequence[Expert]) -> None:
        """Take hints of experts that are not there, the likeliest first."""
        if self._room and not self._gate.shuts_out(len(experts)):
            new = [one for one in experts if one not in self._ahead and one not in self._wrong]
            self.counts.asked += len(new)
            self._asked.update(dict.fromkeys(new))

    def send(self) -> Expert | None:
        """The hint to send next; None where there is none, or no slot for it."""
        if not self._asked or self.slots >= self._room:
            return None
        expert = next(iter(self._asked))
        del self._asked[expert]
        self._ahead[expert] = None
        self.counts.sent += 1
        return expert

    def arrive(self, expert: Expert, message: Message[Slot]) -> bool:
        """Hold an expert that has come until its layer says what it wants; False if the layer did not want it."""
        if expert in self._wrong:
            self._wrong.remove(expert)
            return False
        self._ahead[expert] = message
        return True

    def settle(
        self, layer: int, misses: Sequence[Expert]
    ) -> tuple[dict[Expert, Message[Slot] | None], dict[Expert, Message[Slot]]]:
        """Decide the hints of a layer by the experts that it wants and misses.

        Returns the useful ones, each with its message if it has come, and the wasted ones that have come.
        """
        useful = {one: self._ahead.pop(one) for one in misses if one in self._ahead}
        late = dict.fromkeys(self._wrong.intersection(misses))
        self._wrong.difference_update(late)
        vain = {one: self._ahead.pop(one) for one in list(self._ahead) if one[0] == layer}
        moving = {one for one, message in vain.items() if message is None}
        self._wrong |= moving
        self._asked = {one: None for one in self._asked if one[0] != layer}
        early = sum(message is not None for message in useful.values())
        self._judge(len(useful), early, len(vain), len(moving))
        return useful | late, {one: message for one, message in vain.items() if message is not None}

    def _judge(self, useful: int, early: int, wasted: int, in_the_way: int) -> None:
        counts = self.counts
        counts.useful, counts.early = counts.useful + useful, counts.early + early
        counts.wasted, counts.in_the_way = counts.wasted + wasted, counts.in_the_way + in_the_way
        if self._gate.judge(early, in_the_way, useful + wasted):
            self._asked.clear()
            counts.closed += 1
