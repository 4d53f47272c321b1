"""How an answer of a chat is shown: its text on stdout, its reasoning on stderr, dimmed where that is a terminal."""

import sys
from collections.abc import Callable

from pipeline.generation.chunks import Chunk

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class ShownAnswer:
    """Prints chunks as they come. `part` parts more text, the `last` or not, into reasoning and the rest."""

    def __init__(self, part: Callable[..., tuple[str, str]] | None) -> None:
        self.text = self.reasoning = ""
        self._part = part
        self._dims = sys.stderr.isatty()

    def show(self, chunk: Chunk) -> None:
        """Print what is certain with this chunk."""
        self._show(chunk.text, last=chunk.finish_reason is not None)

    def end(self) -> None:
        """Print what waited for more, where an answer was stopped."""
        self._show("", last=True)

    def _show(self, text: str, *, last: bool) -> None:
        reasoning, rest = ("", text) if self._part is None else self._part(text, last=last)
        if reasoning:
            shown = f"{DIM}{reasoning}{PLAIN}" if self._dims else reasoning
            print(shown, end="", file=sys.stderr, flush=True)
        if rest and self.reasoning + reasoning and not self.text:
            print("\n", file=sys.stderr, flush=True)
        print(rest, end="", flush=True)
        self.reasoning, self.text = self.reasoning + reasoning, self.text + rest
