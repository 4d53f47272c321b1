"""What a request asks for, in the words of `Model.stream`. What the model checks itself is not checked here."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import RequestError, shown
from pipeline.server.bodies import Body, ChatBody, CompletionBody, not_supported
from pipeline.server.errors import ApiError

if TYPE_CHECKING:
    from pipeline.generation.batching import Batcher

COMPLETION_TOKENS = 16
"""New tokens of /v1/completions where the request does not say how many: OpenAI's default."""
MOST_PROMPTS = 1024
SAME_NAME = (
    *("n", "stop", "seed", "temperature", "top_p", "top_k", "min_p", "stop_token_ids", "ignore_eos", "priority"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "min_tokens", "response_format"),
)
"""Fields that are arguments of a call."""
NO_REASONING = "none"
NO_ROOM = "need room for "
"""So begins the error of a request that is longer than the context; clients cut their history for its code."""


def completion_arguments(body: CompletionBody) -> dict[str, Any]:
    """The arguments of each call that a completion makes. Raises ApiError for what cannot be honoured."""
    if body.best_of not in (None, body.n or 1):
        raise not_supported("best_of", f"need n, which is {body.n or 1}, or nothing; have {body.best_of}")
    tokens = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    if tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens: need 1 or more where the prompt is not echoed; have 0", param="max_tokens")
    arguments = _common(body) | {"max_new_tokens": tokens, "logprobs": body.logprobs}
    if body.echo and (body.logprobs is not None or tokens == 0):
        arguments["prompt_logprobs"] = body.logprobs or 0
    return arguments


def chat_arguments(body: ChatBody) -> dict[str, Any]:
    """The arguments of a chat beside its messages and options. Raises ApiError for what cannot be honoured.

    `max_new_tokens` is left out where the request does not say it.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: need logprobs true beside it", param="top_logprobs")
    arguments = _common(body)
    if body.logprobs:
        arguments["logprobs"] = body.top_logprobs or 0
    if (tokens := _most_new_tokens(body)) is not None:
        arguments["max_new_tokens"] = tokens
    return arguments


def chat_options(body: ChatBody) -> dict[str, Any]:
    """How the messages of a chat become a prompt. Raises ApiError for what cannot be honoured."""
    if body.add_special_tokens:
        raise not_supported("add_special_tokens", "is not supported: the chat template puts them; leave it out")
    if body.continue_final_message and body.add_generation_prompt:
        message = "add_generation_prompt: need it or continue_final_message, have both"
        raise ApiError(400, message, param="add_generation_prompt")
    return {
        "documents": body.documents,
        "continue_final_message": body.continue_final_message,
        "add_generation_prompt": body.add_generation_prompt,
        "chat_template_kwargs": _variables(body),
    }


def prompts_of(body: CompletionBody) -> list[str | list[int]]:
    """The prompts: texts, or lists of token ids. Raises ApiError for a list of both, and for too many."""
    prompt: Any = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(one) for one in prompt}
    if kinds == {int}:
        return [prompt]
    if len(kinds) != 1:
        have = "one of several kinds" if kinds else "an empty one"
        raise ApiError(
            400, f"prompt: need a list of texts, of token ids, or of lists of them; have {have}", param="prompt"
        )
    if len(prompt) > MOST_PROMPTS:
        have = f"{len(prompt)}; send several requests"
        raise ApiError(400, f"prompt: need at most {MOST_PROMPTS} prompts; have {have}", param="prompt")
    return list(prompt)


def check_samples(body: Body, prompts: int, batcher: "Batcher") -> None:
    """Raise ApiError where all samples of a request could never wait together: asking again would not help."""
    most = batcher.max_requests + batcher.max_waiting
    if (need := prompts * (body.n or 1)) > most:
        param, what = ("prompt", "samples of all prompts") if prompts > 1 else ("n", "samples")
        raise ApiError(400, f"{param}: need at most {most} {what}, have {need}; send several requests", param=param)


def messages_of(body: ChatBody, *, knows_developers: bool) -> list[dict[str, Any]]:
    """The messages as templates read them: arguments of calls are objects, and developers are the system.

    Where the template `knows_developers` it gets them.
    """
    messages = []
    for message in body.messages:
        if message.get("role") == "developer" and not knows_developers:
            message = {**message, "role": "system"}
        if isinstance(calls := message.get("tool_calls"), list):
            message = {**message, "tool_calls": [_with_object(call) for call in calls]}
        messages.append(message)
    return messages


def tools_of(body: ChatBody) -> Sequence[Mapping[str, Any]]:
    """The functions that the model may call: none where `tool_choice` says so. Raises ApiError for other tools."""
    choice = body.tool_choice
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        need = "need none, auto, required or an object that names a function"
        raise ApiError(400, f"tool_choice: {need}; have {shown(choice)}", param="tool_choice")
    if choice not in (None, "none", "auto") and not body.tools:
        raise ApiError(400, f"tool_choice: need tools beside it; have {shown(choice)}", param="tool_choice")
    for index, tool in enumerate(body.tools or ()):
        function = tool.get("function")
        if tool.get("type", "function") != "function" or not isinstance(function, dict):
            raise not_supported(
                "tools", f"need objects of the type function, each with one; have {shown(tool)} at {index}"
            )
        if not isinstance(function.get("name"), str):
            raise ApiError(400, f"tools: need a function with a name at {index}; have {shown(function)}", param="tools")
    return body.tools if body.tools and choice != "none" else ()


def served_name(names: Sequence[str], body: Body) -> str:
    """The name that answers carry: the one that was asked for. Raises ApiError 404 for one that is not served."""
    if body.model is None:
        return names[0]
    if body.model not in names:
        have = f"model: need {' or '.join(names)}, which is served here; have {shown(body.model)}"
        raise ApiError(404, have, param="model", code="model_not_found")
    return body.model


def calls_in_parallel(body: ChatBody) -> bool:
    """Whether an answer may be several calls of tools; a function that is named is called once."""
    return body.parallel_tool_calls is not False and not isinstance(body.tool_choice, dict)


@contextlib.contextmanager
def naming_fields(body: Body) -> Iterator[None]:
    """Let errors of the model name the fields that the client has sent."""
    try:
        yield
    except RequestError as error:
        most = "max_completion_tokens" if getattr(body, "max_completion_tokens", None) is not None else "max_tokens"
        message = str(error).replace("max_new_tokens", most).replace("min_new_tokens", "min_tokens")
        message = re.sub("^ids: ", "prompt: ", message.replace("prompt_logprobs", "logprobs"))
        if message.startswith(NO_ROOM):
            raise ApiError(400, message, param=most, code="context_length_exceeded") from error
        raise RequestError(message) from error


def _common(body: Body) -> dict[str, Any]:
    return {name: value for name in SAME_NAME if (value := getattr(body, name)) is not None}


def _most_new_tokens(body: ChatBody) -> int | None:
    tokens, older = body.max_completion_tokens, body.max_tokens
    if tokens is not None and older is not None and tokens != older:
        have = f"{tokens}, and {older} in max_tokens, which means the same"
        raise ApiError(400, f"max_completion_tokens: need one of them; have {have}", param="max_completion_tokens")
    return older if tokens is None else tokens


def _variables(body: ChatBody) -> dict[str, Any] | None:
    """Variables of the template: how much it shall reason is one, under the names that templates have for it."""
    if body.reasoning_effort is None:
        return body.chat_template_kwargs
    said: dict[str, Any] = {"reasoning_effort": body.reasoning_effort}
    if body.reasoning_effort == NO_REASONING:
        said["enable_thinking"] = False
    return said | (body.chat_template_kwargs or {})


def _with_object(call: Any) -> Any:
    """A call of a tool whose arguments, a text at OpenAI, are the object that templates write in their own way."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(text := function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call
