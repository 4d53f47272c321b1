"""Answers of /v1/chat/completions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from pipeline.server.token_names import TokenNames
from pipeline.text.tool_calls.deltas import ArgumentsDelta, CallDelta, ReasoningDelta, TextDelta
from pipeline.text.tool_calls.deltas import Delta as Parsed
from pipeline.text.tool_calls.formats import ToolFormat
from pipeline.text.tool_calls.parser import AnswerParser

if TYPE_CHECKING:
    from pipeline.generation.chunks import Chunk


class ChatAnswer(GrowingAnswer[DeltaChoice]):
    """The answer to the messages of a request.

    Where the model has a `tool_format`, calls of `tools` and reasoning, which `prompt` may have begun, are told apart.
    With `names`, the log-probabilities of each token are told, and those of so many likely ones. With `one_call`, a
    sample ends behind its first call of a tool.
    """

    def __init__(
        self,
        model: str,
        samples: int = 1,
        *,
        tool_format: ToolFormat | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        names: TokenNames | None = None,
        top_logprobs: int = 0,
        one_call: bool = False,
        includes_usage: bool = False,
    ) -> None:
        super().__init__("chatcmpl", model, samples, includes_usage=includes_usage)
        self.prompt = ""
        self._tool_format, self._tools = tool_format, tools
        self._parsers: dict[int, AnswerParser] = {}
        self._names, self._top_logprobs = names, top_logprobs
        self._one_call = one_call
        self._ended: set[int] = set()

    @property
    def reads_prompt(self) -> bool:
        """Whether the text of the prompt must be known before the first chunk comes."""
        return self._tool_format is not None and self._tool_format.may_open_reasoning

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
        reason = chunk.finish_reason
        if self._tool_format is None:
            return [Delta(content=chunk.text)] if chunk.text else [], reason
        if (parser := self._parsers.get(index)) is None:
            parser = self._parsers[index] = self._tool_format.parser(self._tools, self.prompt)
        parsed = [*parser.push(chunk.text), *(parser.flush() if reason is not None else ())]
        if self._one_call and parser.calls > 1:
            parsed, reason = _before_second(parsed), "stop"
        return [_delta(one) for one in parsed], "tool_calls" if parser.calls and reason == "stop" else reason

    def frame(self, choices: list[DeltaChoice], usage: Usage | UnsetType | None) -> Struct:
        """See `GrowingAnswer`."""
        return ChatChunk(**self._head, choices=choices, usage=usage)

    def whole(self, added: list[list[DeltaChoice]], usage: Usage) -> Struct:
        """See `GrowingAnswer`."""
        return ChatCompletion(**self._head, choices=[_joined(choices) for choices in added], usage=usage)


def _before_second(parsed: Iterable[Parsed]) -> list[Parsed]:
    return [one for one in parsed if not isinstance(one, CallDelta | ArgumentsDelta) or one.index == 0]


def _delta(parsed: Parsed) -> Delta:
    match parsed:
        case TextDelta(text):
            return Delta(content=text)
        case ReasoningDelta(text):
            return Delta(reasoning_content=text)
        case CallDelta(index, id, name):
            function = FunctionDelta(name=name, arguments="")
            return Delta(tool_calls=[ToolCallDelta(index=index, id=id, type="function", function=function)])
        case ArgumentsDelta(index, text):
            return Delta(tool_calls=[ToolCallDelta(index=index, function=FunctionDelta(arguments=text))])


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
