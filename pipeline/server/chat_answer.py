"""Answers of /v1/chat/completions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import UNSET, Struct, UnsetType

from pipeline.server.answers import GrowingAnswer
from pipeline.server.objects import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    Delta,
    DeltaChoice,
    Function,
    ToolCall,
    Usage,
)
from pipeline.server.token_names import TokenNames

if TYPE_CHECKING:
    from pipeline.generation.sequence import Chunk


class ChatAnswer(GrowingAnswer[DeltaChoice]):
    """The answer to the messages of a request.

    There is a parser for each sample where the model's format is known. With `names`, the log-probabilities of each
    token are told, and those of so many likely ones. With `one_call`, a sample ends behind its first call of a tool.
    """

    def __init__(
        self,
        model: str,
        parsers: Sequence[None],
        *,
        names: TokenNames | None = None,
        top_logprobs: int = 0,
        one_call: bool = False,
        includes_usage: bool = False,
    ) -> None:
        super().__init__("chatcmpl", model, len(parsers), includes_usage=includes_usage)
        self._parsers = parsers
        self._names, self._top_logprobs = names, top_logprobs
        self._one_call = one_call
        self._ended: set[int] = set()

    @property
    def ended(self) -> bool:
        """See `GrowingAnswer`."""
        return len(self._ended) == self.samples

    def added(self, index: int, chunk: "Chunk", *, begins: bool) -> list[DeltaChoice]:
        """See `GrowingAnswer`: the first tells the role alone, the last why it ends."""
        if index in self._ended:
            return []
        choices = [DeltaChoice(index, Delta(role="assistant", content=""))] if begins else []
        deltas, reason = self._deltas(index, chunk)
        own = [DeltaChoice(index, delta) for delta in deltas]
        if reason is not None:
            self._ended.add(index)
            own.append(DeltaChoice(index, Delta(), finish_reason=reason))
        if self._names is not None:
            own = own or [DeltaChoice(index, Delta(content=""))]
            token_ids, found = chunk.token_ids, chunk.logprobs or {}
            named = [self._names.of_chat(token_id, found, self._top_logprobs) for token_id in token_ids]
            own[0].logprobs = ChatLogprobs(named)
        return choices + own

    def _deltas(self, index: int, chunk: "Chunk") -> tuple[list[Delta], str | None]:
        """What the text of a chunk means, and why the sample ends with it, if it does."""
        return [Delta(content=chunk.text)] if chunk.text else [], chunk.finish_reason

    def frame(self, choices: list[DeltaChoice], usage: Usage | UnsetType | None) -> Struct:
        """See `GrowingAnswer`."""
        return ChatChunk(**self._head, choices=choices, usage=usage)

    def whole(self, added: list[list[DeltaChoice]], usage: Usage) -> Struct:
        """See `GrowingAnswer`."""
        return ChatCompletion(**self._head, choices=[_joined(choices) for choices in added], usage=usage)


def _joined(choices: Sequence[DeltaChoice]) -> ChatChoice:
    content, reasoning = "", ""
    calls: list[ToolCall] = []
    named = [one for choice in choices if choice.logprobs is not None for one in choice.logprobs.content]
    for delta in (choice.delta for choice in choices):
        content += delta.content or ""
        reasoning += delta.reasoning_content or ""
        for call in delta.tool_calls or ():
            if call.id is not UNSET:
                calls.append(ToolCall(call.id, Function(call.function.name or "", "")))
            calls[call.index].function.arguments += call.function.arguments
    message = ChatMessage(
        content=content if content or not calls else None,
        reasoning_content=reasoning or UNSET,
        tool_calls=calls or UNSET,
    )
    has_logprobs = any(choice.logprobs is not None for choice in choices)
    return ChatChoice(
        choices[0].index, message, ChatLogprobs(named) if has_logprobs else None, choices[-1].finish_reason
    )
