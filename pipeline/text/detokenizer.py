"""Token ids back to text, one at a time, never half a character."""

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


LONGEST_CHARACTER_BYTES = 4


class Detokenizer(Protocol):
    """Text that grows with every token, from the beginning, or from where a prompt ends.

    Text that the prompt completes is not returned; a character that it leaves unfinished belongs to what follows. So
    the prompt's text, what all pushes return and what one flush returns are together what `decode` returns for both.
    """

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes; empty while a character is incomplete."""

    def flush(self) -> str:
        """Return what is left, with U+FFFD for bytes that never became a character."""

    def piece(self, token_id: int) -> bytes:
        """Return the bytes that a token has inside of a text: maybe part of a character, and none where it has none."""


class ByteLevelDetokenizer:
    """For tokens that are bytes: invalid UTF-8 becomes U+FFFD, one for each maximal invalid part.

    `pieces` maps a token id to its bytes; ids that are not in it (special or unused ones) have no text.
    """

    def __init__(self, pieces: Mapping[int, bytes], prompt_ids: Sequence[int] = ()) -> None:
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        tail = b""
        for token_id in reversed(prompt_ids):
            tail = pieces.get(token_id, b"") + tail
            if len(tail) >= LONGEST_CHARACTER_BYTES:
                break
        self._utf8.decode(tail)  # keeps what is unfinished

    def push(self, token_id: int) -> str:
        """See `Detokenizer`."""
        return self._utf8.decode(self._pieces.get(token_id, b""))

    def flush(self) -> str:
        """See `Detokenizer`."""
        return self._utf8.decode(b"", final=True)

    def piece(self, token_id: int) -> bytes:
        """See `Detokenizer`."""
        return self._pieces.get(token_id, b"")


class ByteFallbackDetokenizer:
    """For tokens that are text, and bytes only where the vocabulary lacks a character (SentencePiece style).

    `pieces` maps a token id to text or to a single byte. A run of bytes is text only if all of it is valid UTF-8,
    otherwise each of its bytes becomes U+FFFD; so a run is held back until it ends. With `strip_first_space` one
    space at the very beginning is dropped.
    """

    def __init__(
        self, pieces: Mapping[int, str | bytes], strip_first_space: bool, prompt_ids: Sequence[int] = ()
    ) -> None:
        self._pieces = pieces
        self._strip = strip_first_space
        self._run = bytearray()
        for token_id in prompt_ids[_last_text(pieces, prompt_ids) :]:
            self.push(token_id)
        self._forget_what_is_complete()

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

    def piece(self, token_id: int) -> bytes:
        """See `Detokenizer`."""
        piece = self._pieces.get(token_id, b"")
        return piece if isinstance(piece, bytes) else piece.encode()

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

    def _forget_what_is_complete(self) -> None:
        """Drop the characters of a run of bytes with which the prompt ends: they are the prompt's text."""
        try:
            complete = len(self._run)
            self._run.decode()
        except UnicodeDecodeError as error:
            complete = error.start
        if complete and not (self._strip and self._run[:complete] == b" "):  # such a space is stripped, not shown
            del self._run[:complete]
            self._strip = False


class SeparateTokensDetokenizer:
    """For tokens that are decoded one by one, of which only the first is treated in a way of its own.

    `texts` has those that count, without special ones; `decode` is what the decoder makes of the texts of some.
    """

    def __init__(
        self, texts: Mapping[int, str], decode: Callable[[list[str]], str], prompt_ids: Sequence[int] = ()
    ) -> None:
        self._texts, self._decode = texts, decode
        self._before = [""] if any(token_id in texts for token_id in prompt_ids) else []

    def push(self, token_id: int) -> str:
        """See `Detokenizer`."""
        if token_id not in self._texts:
            return ""
        text = self._decode([*self._before, self._texts[token_id]])
        text = text.removeprefix(self._decode(self._before))
        self._before = [""]
        return text

    def flush(self) -> str:
        """See `Detokenizer`."""
        return ""

    def piece(self, token_id: int) -> bytes:
        """See `Detokenizer`."""
        if token_id not in self._texts:
            return b""
        return self._decode(["", self._texts[token_id]]).removeprefix(self._decode([""])).encode()


class ShowingDetokenizer:
    """Another one, but that some special tokens have a text. Such a token ends the character before it."""

    def __init__(self, others: Detokenizer, shown: Mapping[int, str]) -> None:
        self._others, self._shown = others, shown

    def push(self, token_id: int) -> str:
        """See `Detokenizer`."""
        name = self._shown.get(token_id)
        return self._others.push(token_id) if name is None else self._others.flush() + name

    def flush(self) -> str:
        """See `Detokenizer`."""
        return self._others.flush()

    def piece(self, token_id: int) -> bytes:
        """See `Detokenizer`."""
        name = self._shown.get(token_id)
        return self._others.piece(token_id) if name is None else name.encode()


def _last_text(pieces: Mapping[int, str | bytes], prompt_ids: Sequence[int]) -> int:
    """The position of the last token that is text and no byte; 0 where there is none."""
    for position in range(len(prompt_ids) - 1, 0, -1):
        piece = pieces.get(prompt_ids[position])
        if piece and isinstance(piece, str):
            return position
    return 0
