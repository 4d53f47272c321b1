"""From a list of merges to the ranks that tiktoken merges by, without changing a single result.

A merge list joins two tokens only if that very pair is listed, in the order of the list. tiktoken joins any two
neighbours whose bytes together are a token, in the order of that token's rank. The two agree exactly on the tokens
that are *live*: those whose own text, tokenized by the list, comes out as that one token.

Why: take two neighbours x, y whose text together is a token t. Nothing has been joined across the ends of t so far,
so inside t everything happened as it happens when t stands alone; and there only one pair of tokens can precede the
end, because each merge removes one token. If t is live that pair is the one in the list; if t is not live and no
rank is given to it, neither side joins x and y. So both sides see the same candidates in the same order.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise


class Inexact(Exception):
    """A tokenizer cannot be expressed exactly as tiktoken ranks; the message says why."""


MOST_STEPS = 10_000_000
"""Steps of looking for words that no merge makes: about a second."""
_LETTER, _NEVER = -1, -2  # in place of the index of a merge


class MergeList:
    """A checked merge list over a vocabulary with the ids 0, 1, 2, ...; `merges` are pairs of tokens.

    `live` holds the ids of the live tokens in the order of the list.

    Raises Inexact if the list has entries that are no merges of the vocabulary, or an order that cannot be a rank.
    """

    def __init__(self, vocabulary: Mapping[str, int], merges: Iterable[Sequence[str]]) -> None:
        self._vocabulary = vocabulary
        self._size = len(vocabulary)
        self._order: dict[int, int] = {}  # by pair: the index of its merge
        self._results: list[int] = []  # by index: the token that the merge makes
        # By token: the index of the merge that makes it.
        by_id = sorted(vocabulary, key=vocabulary.__getitem__)
        self._made = [_LETTER if len(token) == 1 else _NEVER for token in by_id]
        self._left, self._right = [0] * self._size, [0] * self._size  # what a live token is made of
        self.live: list[int] = []
        self._steps = 0
        too_early: list[tuple[int, int, int]] = []
        for index, merge in enumerate(merges):
            try:
                left, right = map(vocabulary.__getitem__, merge)
                token = vocabulary["".join(merge)]
            except (KeyError, ValueError) as error:
                fault = "does not join two tokens of the vocabulary to a third"
                raise Inexact(f"merge {index} ({merge}) {fault}") from error
            if self._order.setdefault(left * self._size + right, index) != index:
                raise Inexact(f"merge {index} ({merge}) is listed twice")
            self._results.append(token)
            if self._made[token] != _NEVER:
                continue
            if _NEVER in (self._made[left], self._made[right]):
                too_early.append((left, right, token))
            elif self._survives(left, right):
                self._made[token] = index
                self._left[token], self._right[token] = left, right
                self.live.append(token)
        for left, right, token in too_early:
            if self._made[token] == _NEVER and _NEVER not in (self._made[left], self._made[right]):
                raise Inexact("a token is made of one that only a later merge makes")

    def _survives(self, left: int, right: int) -> bool:
        """Whether the two come to stand side by side, or a merge across the border between them comes first.

        Walks back in time: undoes whichever last merge of the two was made later (of equal ones the right, since the
        leftmost goes first) and asks whether the tokens that then met at the border would have been joined before.
        """
        made = self._made
        left_made, right_made = made[left], made[right]
        while True:
            if left_made > right_made:
                latest = left_made
                left = self._right[left]
                left_made = made[left]
            elif right_made != _LETTER:
                latest = right_made + 1  # a pair of the same merge further left goes first
                right = self._left[right]
                right_made = made[right]
            else:
                return True
            if self._order.get(left * self._size + right, latest) < latest:
                return False

    def require_unreachable(self, token: str) -> None:
        """Check that `token`, which is not live, never comes within one merge of being made.

        Then it may have a rank, to be found as a whole word only (`ignore_merges`). Raises Inexact otherwise, and where
        looking would take too long: the steps grow with the square of the letters.
        """
        self._steps += len(token) ** 2
        if self._steps > MOST_STEPS:
            raise Inexact(f"token {token[:40]!r}, of {len(token)} letters, and others are words that no merge makes")
        parts = [self._vocabulary[letter] for letter in token]
        while found := [
            (self._order[pair], at)
            for at, (left, right) in enumerate(pairwise(parts))
            if (pair := left * self._size + right) in self._order
        ]:
            index, at = min(found)
            parts[at : at + 2] = [self._results[index]]
        if len(parts) == 2:
            raise Inexact(f"token {token!r} is a word of its own but no merge makes it")
