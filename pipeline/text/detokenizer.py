"""Token ids back to text, one at a time, never half a character."""

import codecs
from collections.abc import Mapping
from typing import Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    """Text that grows with every token. What all pushes and one flush return, joined, is what `decode` returns."""

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes; empty while a character is incomplete."""
        ...

    def flush(self) -> str:
        """Return what is left, with U+FFFD for bytes that never became a character."""
        ...


class ByteLevelDetokenizer:
    """For tokens that are bytes: invalid UTF-8 becomes U+FFFD, one for each maximal invalid part.

    `pieces` maps a token id to its bytes; ids that are not in it (special or unused ones) have no text.
    """

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """See `Detokenizer`."""
        return self._utf8.decode(self._pieces.get(token_id, b""))

    def flush(self) -> str:
        """See `Detokenizer`."""
        return self._utf8.decode(b"", final=True)


class ByteFallbackDetokenizer:
    """For tokens that are text, and bytes only where the vocabulary lacks a character (SentencePiece style).

    `pieces` maps a token id to text or to a single byte. A run of bytes is text only if all of it is valid UTF-8,
    otherwise each of its bytes becomes U+FFFD; so a run is held back until it ends. With `strip_first_space` one
    space at the very beginning is dropped.
    """

    def __init__(self, pieces: Mapping[int, str | bytes], strip_first_space: bool) -> None:
        self._pieces = pieces
        self._strip = strip_first_space
        self._run = bytearray()

    def push(self, token_id: int) -> str:
        """See `Detokenizer`."""
        piece = self._pieces.get(token_id, "")
        if isinstance(piece, bytes):
            self._run += piece
            return ""
        return self._emit(piece) if piece else ""

    def flush(self) -> str:
        """See `Detokenizer`."""
        return self._emit("")

    def _emit(self, piece: str) -> str:
        try:
            text = self._run.decode() + piece
        except UnicodeDecodeError:
            text = REPLACEMENT * len(self._run) + piece
        self._run.clear()
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text
