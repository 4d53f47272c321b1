"""Answers of /v1/completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import Struct, UnsetType

from pipeline.server.answers import GrowingAnswer
from pipeline.server.objects import Completion, TextChoice, TokenLogprobs, Usage
from pipeline.server.token_names import TokenList, TokenNames

if TYPE_CHECKING:
    from pipeline.generation.chunks import Chunk


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that begins its own answer."""

    text: str
    token_ids: Sequence[int]


class TextAnswer(GrowingAnswer[TextChoice]):
    """One answer to all prompts of a request.

    With `names`, log-probabilities are told; with `echoes`, one for each prompt, answers begin with it.
    """

    def __init__(
        self,
        model: str,
        samples: int,
        *,
        names: TokenNames | None,
        echoes: Sequence[Echo] = (),
        includes_usage: bool = False,
    ) -> None:
        super().__init__("cmpl", model, samples, includes_usage=includes_usage)
        self._names = names
        self._echoes = echoes
        self._tokens: dict[int, TokenList] = {}

    def added(self, index: int, chunk: "Chunk", *, begins: bool) -> list[TextChoice]:
        """See `GrowingAnswer`."""
        text, token_ids = chunk.text, [*chunk.token_ids]
        logprobs = [chunk.logprobs] * len(token_ids)
        if begins and self._echoes:
            echo = self._echoes[index // self.samples]
            text, token_ids = echo.text + text, [*echo.token_ids, *token_ids]
            logprobs = [*(chunk.prompt_logprobs or ()), *logprobs]
        told = None
        if self._names is not None:
            told = self._tokens.setdefault(index, TokenList(self._names)).add(token_ids, logprobs)
        return [TextChoice(index, text, told, chunk.finish_reason)] if text or told or chunk.finish_reason else []

    def frame(self, choices: list[TextChoice], usage: Usage | UnsetType | None) -> Struct:
        """See `GrowingAnswer`."""
        return Completion(**self._head, choices=choices, usage=usage)

    def whole(self, added: list[list[TextChoice]], usage: Usage) -> Struct:
        """See `GrowingAnswer`."""
        return Completion(**self._head, choices=[_joined(choices) for choices in added], usage=usage)


def _joined(choices: Sequence[TextChoice]) -> TextChoice:
    told = [choice.logprobs for choice in choices if choice.logprobs is not None]
    return TextChoice(
        choices[0].index,
        "".join(choice.text for choice in choices),
        _all_of(told) if told else None,
        choices[-1].finish_reason,
    )


def _all_of(parts: Sequence[TokenLogprobs]) -> TokenLogprobs:
    told = TokenLogprobs([], [], [], [])
    for part in parts:
        told.tokens += part.tokens
        told.token_logprobs += part.token_logprobs
        told.top_logprobs += part.top_logprobs
        told.text_offset += part.text_offset
    return told
