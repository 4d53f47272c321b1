"""/v1/chat/completions."""

import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.types import ASGIApp

from pipeline.errors import RequestError
from pipeline.server.answers import document, documents
from pipeline.server.arguments import (
    calls_in_parallel,
    chat_arguments,
    chat_options,
    check_samples,
    messages_of,
    naming_fields,
    served_name,
    tools_of,
)
from pipeline.server.bodies import ChatBody, decode
from pipeline.server.chat_answer import ChatAnswer
from pipeline.server.counting import counted
from pipeline.server.door import read_body
from pipeline.server.served import scope_of, served_of
from pipeline.server.streaming import EventStream, WholeAnswer
from pipeline.server.token_names import TokenNames
from pipeline.text.tool_calls.formats import ToolFormat

if TYPE_CHECKING:
    from pipeline.api import Model
    from pipeline.generation.chunks import Chunk


async def chat_completions(request: Request) -> ASGIApp:
    """Answer messages."""
    served = served_of(request)
    body, model = decode(ChatBody, await read_body(request)), served.model
    name, template = served_name(served.names, body), served.options.template
    tools, arguments, options = tools_of(body), chat_arguments(body), chat_options(body)
    check_samples(body, 1, model.runtime.admission.batcher)
    arguments["cache_scope"] = scope_of(request, body.cache_scope)
    options |= {"tools": tools or None, "chat_template": template}
    with naming_fields(body):
        names = TokenNames(model) if body.logprobs else None
        tool_format = model.tool_format(template, with_tools=bool(tools))
        messages = messages_of(body, knows_developers="developer" in _template(model, template, tools))
        if tool_format is not None:
            arguments["shown_tokens"] = tool_format.marks
        if tools and body.tool_choice not in (None, "auto"):
            arguments["response_format"] = _forced(tool_format, tools, body)
    answer = ChatAnswer(
        name,
        body.n or 1,
        tool_format=tool_format,
        tools=tools,
        names=names,
        top_logprobs=body.top_logprobs or 0,
        one_call=not calls_in_parallel(body),
        includes_usage=body.includes_usage,
    )
    stream = _stream(model, answer, messages, options, arguments)
    chunks = counted(request, body, [stream])
    if body.stream:
        return EventStream(documents(answer, chunks))
    return WholeAnswer(lambda: document(answer, answer.samples, chunks))


def _forced(tool_format: ToolFormat | None, tools: Sequence[Mapping[str, Any]], body: ChatBody) -> dict[str, Any]:
    """The format of an answer that is a call. Raises RequestError where none can be forced."""
    if tool_format is None:
        raise RequestError(
            "tool_choice: the model's chat template shows no form of calls, so none can be forced; use 'auto'"
        )
    return tool_format.forced(tools, body.tool_choice, parallel_tool_calls=calls_in_parallel(body))


def _template(model: "Model", template: str | None, tools: Sequence[Mapping[str, Any]]) -> str:
    return model.tokenizer.chat_templates.choose(template, with_tools=bool(tools))


async def _stream(
    model: "Model",
    answer: ChatAnswer,
    messages: Sequence[Mapping[str, Any]],
    options: dict[str, Any],
    arguments: dict[str, Any],
) -> AsyncGenerator["Chunk", None]:
    """The chunks of a chat, which ends with the context where no other length is said."""
    if answer.reads_prompt:
        answer.prompt = await model.chat_prompt(messages, **options)
    if "max_new_tokens" not in arguments:
        prompt_tokens = len(await model.chat_ids(messages, **options))
        arguments["max_new_tokens"] = max(1, model.runtime.context_tokens - prompt_tokens)
    async with contextlib.aclosing(model.stream_chat(messages, **options, **arguments)) as chunks:
        async for chunk in chunks:
            yield chunk
