"""What clients get: the objects of OpenAI's API, each field with the type that OpenAI's own package reads."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType


class PromptDetails(Struct):
    """Of the tokens of prompts, those that were found computed."""

    cached_tokens: int


class Usage(Struct):
    """What a request took, in tokens; a prompt counts once, however many samples it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Headed(Struct, kw_only=True):
    """What all objects of an answer have in common; `created` is in seconds since 1970."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class TokenLogprobs(Struct):
    """Log-probabilities as /v1/completions has them, an entry per token; the first of a prompt has none.

    `text_offset` says how many characters of the text come before the token.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Struct):
    """A sample of a completion, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: TokenLogprobs | None
    finish_reason: str | None


class Completion(Headed, kw_only=True):
    """An answer of /v1/completions, and each chunk of one."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET


class TopLogprob(Struct):
    """One of the most likely tokens."""

    token: str
    bytes: list[int]
    logprob: float


class ContentLogprob(TopLogprob):
    """A token of the answer, and the most likely ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Log-probabilities as chats have them."""

    content: list[ContentLogprob]
    refusal: None = None


class Function(Struct):
    """The function that is called, and the JSON text of its arguments."""

    name: str
    arguments: str


class ToolCall(Struct):
    """A call of a tool."""

    id: str
    function: Function
    type: Literal["function"] = "function"


class ChatMessage(Struct, kw_only=True):
    """What the model has answered."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct):
    """A sample of a chat's answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletion(Headed, kw_only=True):
    """An answer of /v1/chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(Struct, kw_only=True):
    """What a chunk adds to a function that is called."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(Struct, kw_only=True):
    """What a chunk adds to the call of a tool with this index."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class Delta(Struct, kw_only=True):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class DeltaChoice(Struct):
    """What a chunk adds to a sample."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(Headed, kw_only=True):
    """A chunk of an answer of /v1/chat/completions."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[DeltaChoice]
    usage: Usage | UnsetType | None = UNSET
