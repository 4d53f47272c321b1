"""/v1/completions."""

import asyncio
import functools
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.types import ASGIApp

from pipeline.server.answers import document, documents
from pipeline.server.arguments import (
    check_samples,
    completion_arguments,
    naming_fields,
    prompts_of,
    served_name,
)
from pipeline.server.bodies import CompletionBody, decode
from pipeline.server.counting import counted
from pipeline.server.door import read_body
from pipeline.server.served import scope_of, served_of
from pipeline.server.streaming import EventStream, WholeAnswer
from pipeline.server.text_answer import Echo, TextAnswer
from pipeline.server.token_names import TokenNames
from pipeline.server.tokenize import on_a_thread

if TYPE_CHECKING:
    from pipeline.generation.chunks import Chunk


async def completions(request: Request) -> ASGIApp:
    """Continue one prompt or several, all at once."""
    served = served_of(request)
    body, model = decode(CompletionBody, await read_body(request)), served.model
    name = served_name(served.names, body)
    prompts, arguments = prompts_of(body), completion_arguments(body)
    arguments["cache_scope"] = scope_of(request, body.cache_scope)
    check_samples(body, len(prompts), model.runtime.admission.batcher)
    with naming_fields(body):
        names = TokenNames(model) if body.logprobs is not None else None
        adds_special = body.add_special_tokens is not False
        read = [await _read(request, one, adds_special) for one in prompts] if body.echo or not adds_special else []
        streams: list[AsyncGenerator[Chunk, None]] = []
        for prompt in [one.token_ids for one in read] or prompts:
            if streams:
                await asyncio.sleep(0)  # a thousand calls are checked in a tenth of a second
            streams.append(model.stream(prompt, **arguments))
    answer = TextAnswer(
        name,
        body.n or 1,
        names=names,
        echoes=read if body.echo else (),
        includes_usage=body.includes_usage,
    )
    chunks = counted(request, body, streams)
    if body.stream:
        return EventStream(documents(answer, chunks))
    return WholeAnswer(lambda: document(answer, len(prompts) * answer.samples, chunks))


async def _read(request: Request, prompt: str | list[int], adds_special: bool) -> Echo:
    """A prompt as text and as token ids, made of each other on a thread: it may be long."""
    tokenizer = served_of(request).model.tokenizer
    if isinstance(prompt, str):
        encode = functools.partial(tokenizer.encode, prompt, add_special_tokens=adds_special)
        return Echo(prompt, await on_a_thread(request, len(prompt), encode))
    return Echo(await on_a_thread(request, len(prompt), functools.partial(tokenizer.decode, prompt)), prompt)
