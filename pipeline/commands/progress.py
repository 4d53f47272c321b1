"""One line on stderr that tells what is going on."""

import shutil
import sys
from typing import ClassVar


class Progress:
    """Rewrites one line where stderr is a terminal; elsewhere prints a line for each thing said."""

    _stands: ClassVar[bool] = False
    """Whether the cursor is behind such a line, of whichever instance: a process has one terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Show `text` in place of what was said before."""
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)
            Progress._stands = True
        else:
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Wipe the line where one stands, and no line of text that has come since."""
        if self._terminal and Progress._stands:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            Progress._stands = False


def say_loading() -> None:
    """torch takes a second or two to import, and nothing may look hung."""
    Progress().say("loading torch")
