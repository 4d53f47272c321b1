"""Byte pair encoding with tiktoken: the engine of every tokenizer that can be written as bytes with ranks."""

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import tiktoken

from pipeline.errors import CheckpointError, RequestError
from pipeline.system.threads import slices
from pipeline.text.added_tokens import AddedToken
from pipeline.text.detokenizer import Detokenizer
from pipeline.text.split_patterns import COVERING_PATTERNS

if TYPE_CHECKING:
    from numpy import uint32
    from numpy.typing import NDArray

# The pattern engine of tiktoken overflows its stack on 999,999 whitespace characters in a row (0.9 to 0.14).
LONGEST_WHITESPACE_RUN = 500_000
SLICE_CHARACTERS, SLICE_IDS = 1 << 12, 1 << 14
"""So much is worked on at a time, for about a millisecond: between two slices other threads can run."""
COMPOSED_BYTES = 4
"""Normalisation (NFC) makes a text at most 3.5 times shorter: iota of its compatibility block, with two marks."""


class BytePairEngine:
    """Cuts added tokens out of the text, splits the rest by `pattern`, and merges bytes in the order of `ranks`.

    `ranks` maps token bytes to ranks 0, 1, ...; `token_ids[rank]` is the id, and `spelt[rank]` the ids where there are
    several. `prefix` and `suffix` are ids put around every text. `mark` changes what is between added tokens before it
    is split; it is told whether a text begins with it.

    Raises CheckpointError if a single byte has no rank: such a vocabulary cannot encode every text. Raises Inexact for
    an added token that is matched in another way than by its text.
    """

    longest_text_bytes = 16 * 2**20

    def __init__(
        self,
        *,
        ranks: dict[bytes, int],
        token_ids: Sequence[int],
        pattern: str,
        detokenizer: Callable[[Sequence[int]], Detokenizer],
        added_tokens: Sequence[AddedToken],
        prefix: Sequence[int],
        suffix: Sequence[int] = (),
        bos_id: int | None,
        normalize: Callable[[str], str] = str,
        mark: Callable[[str, bool], str] | None = None,
        spelt: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        missing = [value for value in range(256) if bytes([value]) not in ranks]
        if missing:
            raise CheckpointError(f"the vocabulary has no token for byte 0x{missing[0]:02X} ({len(missing)} missing)")
        for token in added_tokens:
            token.require_simple()
        self._encoding = tiktoken.Encoding("checkpoint", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._token_ids = token_ids
        # tiktoken drops what its pattern does not match.
        self._words = None if pattern in COVERING_PATTERNS else sorted(ranks, key=ranks.__getitem__)
        self._normalize = normalize
        self._mark = mark
        self._spelt = spelt or {}
        self._raw_tokens = {token.content: token.token_id for token in added_tokens if not token.is_normalized}
        self._normalized_tokens = {normalize(one.content): one.token_id for one in added_tokens if one.is_normalized}
        self._find_raw = _any_of(self._raw_tokens)
        self._find_normalized = _any_of(self._normalized_tokens)
        self._longest_token = max(map(len, [*self._raw_tokens, *self._normalized_tokens, ""]))
        self._prefix, self._suffix = prefix, suffix
        self.bos_id = bos_id
        self.special_tokens = {token.token_id: token.content for token in added_tokens if token.special}
        self.ordinary_size = max(token_ids) + 1
        longest = max(map(len, [*ranks, *(token.content.encode() for token in added_tokens)]))
        self.token_bytes = longest if normalize is str else COMPOSED_BYTES * longest
        self.detokenizer = detokenizer

    def encode(self, text: str, *, add_special_tokens: bool = True) -> "array[int]":
        """Return the ids of `text`. Raises RequestError for what the pattern leaves out, and too much whitespace."""
        _check_whitespace(text)
        ids = array("i", self._prefix if add_special_tokens else ())
        begins = True
        for part, is_token in _cut(self._find_raw, self._longest_token, text):
            if is_token:
                ids.append(self._raw_tokens[part])
            else:
                self._encode_between(self._normalize(part), ids, begins=begins)
            begins = False
        ids.extend(self._suffix if add_special_tokens else ())
        return ids

    def _encode_between(self, text: str, ids: "array[int]", *, begins: bool) -> None:
        for part, is_token in _cut(self._find_normalized, self._longest_token, text):
            if is_token:
                ids.append(self._normalized_tokens[part])
            else:
                words = part if self._mark is None else self._mark(part, begins)
                ranks = self._ranks(words)
                if self._words is not None:
                    _require_all(words, ranks, self._words)
                for begin in slices(len(ranks), SLICE_IDS):
                    ids.extend(self._ids(ranks[begin : begin + SLICE_IDS]))
            begins = False

    def _ids(self, ranks: "NDArray[uint32]") -> Iterable[int]:
        if self._spelt and any(rank in self._spelt for rank in ranks.tolist()):
            return [one for rank in ranks.tolist() for one in self._spelt.get(rank) or (self._token_ids[rank],)]
        return map(self._token_ids.__getitem__, ranks.tolist())

    def _ranks(self, text: str) -> "NDArray[uint32]":
        """An array, because a list of millions would be made in one go, while no other thread can run."""
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError as error:  # the pattern engine gives up
            raise RequestError(f"the tokenizer cannot take this text of {len(text)} characters: {error}") from error


def _require_all(text: str, ranks: "NDArray[uint32]", words: Sequence[bytes]) -> None:
    """Check that the words of these ranks are all of the text."""
    nbytes = 0
    for begin in slices(len(ranks), SLICE_IDS):
        nbytes += sum(len(words[rank]) for rank in ranks[begin : begin + SLICE_IDS].tolist())
    data = text.encode()
    if nbytes == len(data):
        return
    place = 0
    for rank in ranks.tolist():
        if not data.startswith(words[rank], place):
            break
        place += len(words[rank])
    at = len(data[:place].decode(errors="ignore"))
    raise RequestError(
        f"the pattern of the tokenizer leaves out {text[at]!r} (U+{ord(text[at]):04X}), after {text[:at][-40:]!r}: "
        "text would be dropped; leave it out, or use another tokenizer"
    )


def _check_whitespace(text: str) -> None:
    """Look at windows, one of which every run that is too long fills."""
    window = LONGEST_WHITESPACE_RUN // 2
    for begin in range(0, len(text), window):
        if text[begin : begin + window].isspace() and len(text) > LONGEST_WHITESPACE_RUN:
            start = len(text[:begin].rstrip())
            length = len(text) - start - len(text[start:].lstrip())
            if length > LONGEST_WHITESPACE_RUN:
                have = f"{length} whitespace characters in a row from character {start}"
                raise RequestError(f"{have}: at most {LONGEST_WHITESPACE_RUN} can be tokenized; shorten the run")


def _cut(find: re.Pattern[str] | None, longest: int, text: str) -> Iterator[tuple[str, bool]]:
    """Yield the non-empty parts of `text` in order, and whether each is an added token; `longest` is the longest one.

    Each search sees one slice, and of the next as much as a token that begins in the slice can reach over.
    """
    done = 0
    for begin in slices(len(text), SLICE_CHARACTERS) if find is not None else ():
        end = begin + SLICE_CHARACTERS
        while find and (found := find.search(text, max(done, begin), end + longest)) and found.start() < end:
            if found.start() > done:
                yield text[done : found.start()], False
            yield found[0], True
            done = found.end()
    if done < len(text):
        yield text[done:], False


def _any_of(words: Mapping[str, int]) -> re.Pattern[str] | None:
    """Compile a pattern for the longest of `words` at the leftmost place, with one group around it."""
    return re.compile(f"({_longest_of([*words])})") if words else None


def _longest_of(words: list[str]) -> str:
    """Write the words as a tree of their letters: the time per character does not grow with their number."""
    branches: dict[str, list[str]] = {}
    for word in words:
        if word:
            branches.setdefault(word[0], []).append(word[1:])
    tails = "|".join(re.escape(first) + _longest_of(rests) for first, rests in branches.items())
    if "" in words:
        return f"(?:{tails})?" if tails else ""
    return tails if len(branches) == 1 else f"(?:{tails})"
