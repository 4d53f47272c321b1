"""What answers call tokens, which may be pieces of a character: their log-probabilities by these names."""

import codecs
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pipeline.errors import CheckpointError, RequestError
from pipeline.server.objects import ContentLogprob, TokenLogprobs, TopLogprob

if TYPE_CHECKING:
    from pipeline.api import Model

LOWEST_LOGPROB = -9999.0
"""In the place of minus infinity, which JSON lacks."""


class TokenNames:
    """Names the tokens of a model. Bytes that are no whole characters are written as OpenAI does: \\xf0\\x9f.

    Raises RequestError for a model without a tokenizer.
    """

    def __init__(self, model: "Model") -> None:
        try:
            tokenizer = model.tokenizer
        except CheckpointError as error:
            raise RequestError(f"logprobs: need names of tokens; {error}") from error
        self.bytes_of, self.special_ids = functools.cache(tokenizer.token_bytes), tokenizer.special_ids
        self.name = functools.cache(lambda token_id: self.bytes_of(token_id).decode(errors="backslashreplace"))

    def of_chat(self, token_id: int, logprobs: Mapping[int, float], count: int) -> ContentLogprob:
        """A token of a chat's answer, and the `count` most likely ones."""
        top = [TopLogprob(*self._named(one), value) for one, value in _most_likely(logprobs, count)]
        return ContentLogprob(*self._named(token_id), _in_json(logprobs[token_id]), top)

    def _named(self, token_id: int) -> tuple[str, list[int]]:
        return self.name(token_id), list(self.bytes_of(token_id))


class TokenList:
    """The tokens of one completion so far, of which each chunk tells those that it adds."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def add(self, token_ids: Iterable[int], logprobs: Iterable[Mapping[int, float] | None]) -> TokenLogprobs:
        """What is told of the next tokens; of several tokens with the same name it is the likeliest."""
        told = TokenLogprobs([], [], [], [])
        for token_id, found in zip(token_ids, logprobs, strict=True):
            told.tokens.append(self._names.name(token_id))
            told.text_offset.append(self._characters)
            told.token_logprobs.append(None if found is None else _in_json(found[token_id]))
            told.top_logprobs.append(None if found is None else self._top(found))
            if token_id not in self._names.special_ids:
                self._characters += len(self._utf8.decode(self._names.bytes_of(token_id)))
        return told

    def _top(self, logprobs: Mapping[int, float]) -> dict[str, float]:
        top: dict[str, float] = {}
        for token_id, value in _most_likely(logprobs, len(logprobs)):
            top.setdefault(self._names.name(token_id), value)
        return top


def _most_likely(logprobs: Mapping[int, float], count: int) -> list[tuple[int, float]]:
    ordered = sorted(logprobs.items(), key=lambda pair: -pair[1])
    return [(token_id, _in_json(value)) for token_id, value in ordered[:count]]


def _in_json(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
