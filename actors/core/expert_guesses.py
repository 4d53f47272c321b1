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
"""So many wrong guesses cost what one right one saves: it saves a part of a read, and each of them delays by a step."""
MOST_UNREAD = 2
"""The most undecided guesses on their way at a time: one is read, and the next begins when that one has landed."""


class Guess:
    """An expert that is perhaps wanted.

    Attributes:
        kept: whether host memory keeps it, so that no byte of it is read.
        begun: whether bytes of it were read, or it is `kept`.
        wanted: None until its layer has said what it wants.
        decided: is called when that is known.
        message: the guess in its slot, once it has come.
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
    """The experts that are asked for because a layer perhaps wants them, the likeliest first.

    A right guess that was begun when it was wanted has saved a part of a read; a wrong one that was being read then is
    in the way for the rest of a step. Each layer has a gate, which closes when wrong guesses cost more than right ones
    save: in the first layers of a model hardly any guess is right. All is counted in `counts`.
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
        """Take guesses of experts that are not there; those that were asked for before and not sent are too late."""
        shut_out = not experts or self._gates[experts[0][0]].shuts_out(len(experts))
        self._asked = [] if shut_out else list(reversed(experts))
        self._counts.asked += len(self._asked)

    def next(self) -> Expert | None:
        """The guess to send next; None where there is none, or too many are on their way."""
        unread = sum(guess.message is None and guess.wanted is None for guess in self._sent.values())
        return self._asked[-1] if self._asked and unread < MOST_UNREAD else None

    def send(self, seq: int, *, kept: bool) -> None:
        """Note that the next guess travels as message number `seq`; whether host memory has `kept` its bytes."""
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
        """Decide all guesses by the experts that their layer wants and misses.

        Returns the right ones, each with its message if it has come, and the wrong ones that have come. The reads of
        wrong ones that have not come end by themselves.
        """
        self._asked.clear()
        right: dict[Expert, Message[Slot] | None] = {}
        vain: dict[Expert, Message[Slot]] = {}
        in_the_way = begun = early = wasted = 0
        if not (undecided := {seq: guess for seq, guess in self._sent.items() if guess.wanted is None}):
            return right, vain
        layer = next(iter(undecided.values())).expert[0]  # all are of one layer: the next `want` decides them
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
        counts.closed += self._gates[layer].judge(PAYS * begun, in_the_way, begun + wasted)
        return right, vain
