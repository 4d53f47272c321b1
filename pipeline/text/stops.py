"""Stop strings, found in text that arrives in pieces."""

from collections import deque
from collections.abc import Sequence

from pipeline.errors import RequestError


class StopStrings:
    """Passes text on until a stop string completes, and cuts exactly before it.

    The occurrence that counts is the one whose last character comes first in the stream; of several that end on
    the same character, the one that starts first. Text that may be the beginning of a stop string is held back.

    All stops are followed at once by one automaton (Aho and Corasick, 1975), so the time per character does not
    grow with their number. A state is the longest suffix of the text that begins a stop string.

    Raises RequestError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]  # length in characters of the state's string
        self._match = [0]  # length of the longest stop string that ends in the state, 0 = none
        self._fallback = [0]  # the longest proper suffix of the state's string that is a state too
        for index, stop in enumerate(stops):
            if not stop:
                raise RequestError(f"stop string {index} is empty: it would end every text at once; leave it out")
            self._add(stop)
        self._link()
        self._state = 0
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that is safe to emit now, and whether a stop string has completed."""
        if self._stopped:
            return "", True
        held = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            self._state = self._step(self._state, character)
            if match := self._match[self._state]:
                self._stopped = True
                self._held = ""
                return held[: end - match], True
        safe = len(held) - self._depth[self._state]
        self._held = held[safe:]
        return held[:safe], False

    def flush(self) -> str:
        """Return the text still held back: the stream has ended without completing a stop string."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _add(self, stop: str) -> None:
        state = 0
        for depth, character in enumerate(stop, start=1):
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._depth.append(depth)
                self._match.append(0)
                self._fallback.append(0)
            state = self._next[state][character]
        self._match[state] = len(stop)

    def _link(self) -> None:
        """Point every state to its fallback, shortest first; a stop string inside a longer one ends there too."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            self._match[state] = self._match[state] or self._match[self._fallback[state]]
            for character, child in self._next[state].items():
                self._fallback[child] = self._step(self._fallback[state], character)
                queue.append(child)

    def _step(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._fallback[state]
        return self._next[state].get(character, 0)
