"""Stop strings, found in text that arrives in pieces."""

from collections.abc import Sequence
from functools import cached_property

from pipeline.errors import RequestError


class StopStrings:
    """The stop strings of a call, whose samples share them. Each sample follows its own text with a `StopSearch`.

    Raises RequestError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        for index, stop in enumerate(stops):
            if not stop:
                raise RequestError(f"stop string {index} is empty: it would end every text at once; leave it out")
        self.stops = tuple(stops)

    @cached_property
    def automaton(self) -> "Automaton":
        """Made with the first text, so that a request that waits for its turn holds the strings only."""
        return Automaton(self.stops)


class Automaton:
    """Follows all stop strings at once (Aho and Corasick, 1975), in a time per character that does not grow with them.

    A state is the longest suffix of the text that begins a stop string; 0 is the empty one. `depth` is the length of
    that suffix in characters, `match` that of the longest stop string that ends in the state, 0 where none does.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: dict[tuple[int, str], int] = {}
        self.depth = [0]
        self.match = [0]
        self._fallback = [0]  # the longest proper suffix of the state's string that is a state too
        for stop in stops:
            self._add(stop)
        self._link()

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while state and (state, character) not in self._next:
            state = self._fallback[state]
        return self._next.get((state, character), 0)

    def _add(self, stop: str) -> None:
        state = 0
        for depth, character in enumerate(stop, start=1):
            following = self._next.setdefault((state, character), len(self.depth))
            if following == len(self.depth):
                self.depth.append(depth)
                self.match.append(0)
                self._fallback.append(0)
            state = following
        self.match[state] = len(stop)

    def _link(self) -> None:
        """Point every state to its fallback, shortest first; a stop string inside a longer one ends there too."""
        for (state, character), child in sorted(self._next.items(), key=lambda edge: self.depth[edge[1]]):
            if state:
                self._fallback[child] = self.step(self._fallback[state], character)
            self.match[child] = self.match[child] or self.match[self._fallback[child]]


class StopSearch:
    """Passes text on until a stop string completes, and cuts exactly before it.

    The occurrence that counts is the one whose last character comes first in the stream; of several that end on
    the same character, the one that starts first. Text that may be the beginning of a stop string is held back.
    """

    def __init__(self, stop_strings: StopStrings) -> None:
        self._stop_strings = stop_strings
        self._state = 0
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that is safe to emit now, and whether a stop string has completed."""
        if self._stopped:
            return "", True
        if not self._stop_strings.stops:
            return text, False
        automaton = self._stop_strings.automaton
        held = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            self._state = automaton.step(self._state, character)
            if match := automaton.match[self._state]:
                self._stopped = True
                self._held = ""
                return held[: end - match], True
        safe = len(held) - automaton.depth[self._state]
        self._held = held[safe:]
        return held[:safe], False

    def flush(self) -> str:
        """Return the text still held back: the stream has ended without completing a stop string."""
        held, self._held, self._state = self._held, "", 0
        return held
