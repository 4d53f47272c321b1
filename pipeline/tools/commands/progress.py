"""One line on stderr that tells what is going on."""

import shutil
import sys
import time
from typing import ClassVar

MOST_SECONDS = 60.0
"""Between lines of `go_on` where stderr is no terminal."""
LOADING = "loading torch"
"""Its import takes a second or two, and nothing may look hung."""


class Progress:
    """Rewrites one line where stderr is a terminal; elsewhere prints a line for each thing said."""

    _stands: ClassVar[bool] = False
    """Whether the cursor is behind such a line, of whichever instance: a process has one terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._pause_seconds, self._next_seconds = 0.5, 0.0

    def say(self, text: str) -> None:
        """Show `text` in place of what was said before."""
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)
            Progress._stands = True
        else:
            print(text, file=sys.stderr, flush=True)

    def go_on(self, text: str) -> None:
        """Show `text` of work that says so many times a minute; where stderr is a log, ever more rarely."""
        now = time.monotonic()
        if self._terminal or now >= self._next_seconds:
            self._pause_seconds = min(2 * self._pause_seconds, MOST_SECONDS)
            self._next_seconds = now + self._pause_seconds
            self.say(text)

    def clear(self) -> None:
        """Wipe the line where one stands, and no line of text that has come since."""
        if self._terminal and Progress._stands:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            Progress._stands = False
