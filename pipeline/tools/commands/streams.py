"""stdout and stderr as commands have them: the reader may go away, a disk may be full, and either may be closed."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from pipeline.errors import PenstockError


class ReaderGone(Exception):
    """The reader of our output has closed it."""


class OutputFailed(PenstockError):
    """Printed text cannot be written."""


class OutputStream:
    """A stream whose failures are told apart from those of other files. What is only progress is not worth failing."""

    def __init__(self, name: str, stream: TextIO, *, only_progress: bool) -> None:
        self._name, self._stream, self._only_progress = name, stream, only_progress

    def write(self, text: str) -> int:
        """As the stream does. Raises ReaderGone and OutputFailed."""
        with self._watched():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As the stream does. Raises ReaderGone and OutputFailed."""
        with self._watched():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Nothing more gets there, and the interpreter must not fail to flush the rest when it ends.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._only_progress:
                return
            if isinstance(error, BrokenPipeError):
                raise ReaderGone from error
            raise OutputFailed(f"{self._name} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Let what is printed within raise ReaderGone and OutputFailed where stdout fails, at the latest at the end.

    Raises OutputFailed where stdout is closed. What goes to a closed stderr is lost, instead of going elsewhere.
    """
    stdout, stderr = sys.stdout, sys.stderr
    if stderr is None:
        stderr = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives, in the place of the closed one
    if stdout is None:
        sys.stderr = stderr
        raise OutputFailed("stdout is closed; send what is printed to a file, or to /dev/null")
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="replace")
    sys.stdout = cast("TextIO", OutputStream("stdout", stdout, only_progress=False))
    sys.stderr = cast("TextIO", OutputStream("stderr", stderr, only_progress=True))
    try:
        yield
        sys.stdout.flush()
    except SystemExit:
        sys.stdout.flush()  # the help was asked for
        raise
    finally:
        sys.stdout, sys.stderr = stdout, stderr
