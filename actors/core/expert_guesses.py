"""Guesses: experts of the next layer that are read while the disk would stand still, until its router has spoken.

Between the last read of a layer and the first of the next one the disk has nothing to do. A guess fills that gap: it
is read when nothing else waits to be read, in steps; the read of a wrong one ends with the step under way.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from actors.core.budget import Slot
from actors.core.expert_cache import Expert
from actors.core.expert_counts import HintCounts
from actors.core.expert_hints import HintGate
from actors.core.message import Message

PAYS = 2
"""A right guess saves a part of a read; a wrong one under way delays others by a step. So many of these are as bad."""
MOST_UNREAD = 2
"""So many undecided guesses have not come yet at a time: one is read, and the next begins when it has landed."""


class Guess:
    """An expert that is perhaps wanted.

    Attributes:
        begun: whether bytes of it were read, or it needs none, as host memory keeps it.
        wanted: None until its layer has said what it wants.
        decided: is called when that is known.
    """

    def __init__(self, expert: Expert, *, kept: bool) -> None:
        self.expert = expert
        self.kept = self.begun = kept
        self.wanted: bool | None = None
        self.decided: Callable[[], None] = lambda: None
        self.message: Message[Slot] | None = None

    def goes_on(self) -> bool:
        """Whether it is still to be read."""
        return self.wanted is not False

    def decide(self, *, wanted: bool) -> None:
        """Let whoever reads it know."""
        self.wanted = wanted
        self.decided()


class Guesses:
    """The experts that are asked for because a layer wants them perhaps, what is likeliest first.

    Right ones that were begun when they were wanted saved a part of a read; wrong ones that were being read then are
    in the way for the rest of a step. The gate of a layer closes when these cost more: of the first layers of a model
    hardly any are right. All is counted in `counts`.
    """

    def __init__(self, counts: HintCounts) -> None:
        self._counts = counts
        self._gates = defaultdict[int, HintGate](HintGate)
        self.forget()

    @property
    def slots(self) -> int:
        """How many slots hold a guess, or will when it has come."""
        return len(self._sent)

    def forget(self) -> None:
        """Drop all; the lines have stopped."""
        self._asked: list[Expert] = []
        self._sent: dict[int, Guess] = {}

    def ask(self, experts: Sequence[Expert]) -> None:
        """Take guesses of experts that are not there, in the place of those before, which are too late."""
        shut_out = not experts or self._gates[experts[0][0]].shuts_out(len(experts))
        self._asked = [] if shut_out else list(reversed(experts))
        self._counts.asked += len(self._asked)

    def next(self) -> Expert | None:
        """The one that may be sent; None where there is none, or too many are on their way."""
        unread = sum(guess.message is None and guess.wanted is None for guess in self._sent.values())
        return self._asked[-1] if self._asked and unread < MOST_UNREAD else None

    def send(self, seq: int, *, kept: bool) -> None:
        """Note that it travels as the message of this number, perhaps with the bytes that host memory has `kept`."""
        self._sent[seq] = Guess(self._asked.pop(), kept=kept)
        self._counts.sent += 1

    def of(self, seq: int) -> Guess | None:
        """The guess that a message stands for, until it has come and is decided."""
        return self._sent.get(seq)

    def arrive(self, seq: int, message: Message[Slot]) -> Guess | None:
        """Hold a guess that has come until it is decided, or hand it over; None for what is no guess."""
        if (guess := self._sent.get(seq)) is not None:
            guess.message = message
            if guess.wanted is not None:
                del self._sent[seq]
        return guess

    def settle(
        self, misses: Sequence[Expert]
    ) -> tuple[Mapping[Expert, Message[Slot] | None], Mapping[Expert, Message[Slot]]]:
        """Decide all by what a layer wants and has not: what of it comes or has come, and what has come in vain.

        What has not come and is not wanted ends where it is.
        """
        self._asked.clear()
        right: dict[Expert, Message[Slot] | None] = {}
        vain: dict[Expert, Message[Slot]] = {}
        in_the_way = begun = early = wasted = 0
        if not (undecided := {seq: guess for seq, guess in self._sent.items() if guess.wanted is None}):
            return right, vain
        for seq, guess in undecided.items():
            came, wanted = guess.message is not None, guess.expert in misses
            if guess.message is not None:
                del self._sent[seq]
            if wanted:
                right[guess.expert] = guess.message
                begun, early = begun + guess.begun, early + came
            elif guess.message is not None:
                vain[guess.expert] = guess.message
            if not wanted and guess.begun:
                wasted, in_the_way = wasted + 1, in_the_way + (not came)
            guess.decide(wanted=wanted)
        counts = self._counts
        counts.useful, counts.early = counts.useful + len(right), counts.early + early
        counts.wasted, counts.in_the_way = counts.wasted + wasted, counts.in_the_way + in_the_way
        gate = self._gates[guess.expert[0]]  # all are of the layer that wants now
        counts.closed += gate.judge(PAYS * begun, in_the_way, begun + wasted)
        return right, vain
