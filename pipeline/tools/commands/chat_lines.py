"""What is said in a chat: typed in a terminal, with history and editing, or line by line from a pipe."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError, RequestError

PROMPT, MORE = ">>> ", "... "
QUOTES = '"""'
"""Begin and end a text of several lines."""
MOST_LINES = 10_000


def check_stdin() -> None:
    """Raise RequestError where nothing can be said."""
    if sys.stdin is None:
        raise RequestError("stdin is closed; chat from a terminal, or send a line for each turn")


class ChatLines:
    """Gives what is said, turn by turn. In a terminal, Ctrl-C gives a new line, and Ctrl-C once more ends the chat."""

    def __init__(self) -> None:
        self.from_terminal = sys.stdin.isatty()
        self._edited = self.from_terminal and sys.stdout.isatty()

    @contextlib.contextmanager
    def history(self, path: Path | None) -> Iterator[None]:
        """Let the lines be edited within, and kept in a file where one is given. Raises ConfigError."""
        if not self._edited:
            yield
            return
        import readline

        readline.clear_history()
        if path is None:
            yield
            return
        try:
            if path.exists():
                readline.read_history_file(path)
            readline.append_history_file(0, path) if path.exists() else readline.write_history_file(path)
        except OSError as error:
            raise ConfigError(f"--history: {path}: {error.strerror}; name another file") from error
        readline.set_history_length(MOST_LINES)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                readline.write_history_file(path)

    def __iter__(self) -> Iterator[str]:
        interrupted = False
        while True:
            try:
                text = self._text()
            except KeyboardInterrupt:
                if not self.from_terminal:
                    raise
                if interrupted:
                    return
                interrupted = True
                print("\nCtrl-C once more, or Ctrl-D, ends the chat", file=sys.stderr)
                continue
            except EOFError:
                if self.from_terminal:
                    print(file=sys.stderr)  # what is said now begins a line
                return
            interrupted = False
            yield text

    def _text(self) -> str:
        """The next turn: a line, or all lines between quotes."""
        text = self._line(PROMPT)
        if not text.lstrip().startswith(QUOTES):
            return text
        lines = [text.lstrip().removeprefix(QUOTES)]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(self._line(MORE))
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str:
        """Raises EOFError at the end."""
        if self._edited:
            return input(prompt)
        if self.from_terminal:
            print(prompt, end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")
