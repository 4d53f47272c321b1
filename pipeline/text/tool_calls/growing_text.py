"""Text that grows while it is read. However it is cut into pieces, the same is found in it."""

from collections.abc import Callable
from typing import Any, TypeAlias

import regex

from pipeline.text.tool_calls.deltas import Delta, Steps

Pattern: TypeAlias = Any
Match: TypeAlias = Any
"""Those of the `regex` package, which has no types. Unlike `re` it says whether more text may still match."""


class GrowingText:
    """What has come of a text and was not read yet; `ended` says that no more comes."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False

    def take(self, length: int) -> str:
        """Read so many characters of those that have come."""
        taken, self.text = self.text[:length], self.text[length:]
        return taken

    def put_back(self, text: str) -> None:
        """Let text be read once more."""
        self.text = text + self.text

    def match(self, pattern: Pattern) -> Steps[Match | None]:
        """Read what the pattern says, if that comes next; else nothing is read.

        What matches up to the end of what has come may match more of what is still to come, so that is waited for.
        """
        while True:
            found = pattern.match(self.text, partial=not self.ended)
            if found is None:
                return None
            if self._whole(found):
                self.take(found.end())
                return found
            yield None

    def until(self, pattern: Pattern, made: Callable[[str], Delta]) -> Steps[Match | None]:
        """Give as deltas what comes before the pattern, and read that, too; None where the text ends without it."""
        while True:
            found = pattern.search(self.text, partial=not self.ended)
            whole = found is not None and self._whole(found)
            if before := self.take(len(self.text) if found is None else found.start()):
                yield made(before)
            if found is not None and whole:
                self.take(len(found[0]))
                return found
            if self.ended:
                return None
            yield None

    def rest(self, made: Callable[[str], Delta]) -> Steps[None]:
        """Give all that comes as deltas."""
        while self.text or not self.ended:
            yield made(self.take(len(self.text))) if self.text else None

    def through(self, mark: str) -> Steps[str | None]:
        """Read up to the end of the mark; None, and nothing is read, where the text ends without it."""
        begin = 0
        while (place := self.text.find(mark, begin)) < 0:
            if self.ended:
                return None
            begin = max(0, len(self.text) - len(mark))
            yield None
        return self.take(place + len(mark))

    def _whole(self, found: Match) -> bool:
        return not found.partial and bool(self.ended or found.end() < len(self.text))


def compiled(pattern: str) -> Pattern:
    """A pattern in which a dot is any character."""
    return regex.compile(pattern, regex.DOTALL)
