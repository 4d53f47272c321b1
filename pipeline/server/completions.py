"""/v1/completions."""

import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipeline.server.counting import counted
from pipeline.server.door import read_body
from pipeline.server.served import scope_of, served_of
from pipeline.server.streaming import EventStream, WholeAnswer

if TYPE_CHECKING:
    from pipeline.generation.sequence import Chunk


async def completions(request: Request) -> Response:
    """Continue a prompt."""
    body = msgspec.json.decode(await read_body(request), type=dict)
    served = served_of(request)
    chunks = served.model.stream(
        body["prompt"], max_new_tokens=body.get("max_tokens", 16), cache_scope=scope_of(request)
    )
    documents = _documents(counted(request, chunks))
    if body.get("stream"):
        return EventStream(documents)

    async def whole() -> bytes:
        return b"[" + b",".join([document async for document in documents]) + b"]"

    return WholeAnswer(whole)


async def _documents(chunks: "AsyncGenerator[Chunk, None]") -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            choice = {"index": chunk.index, "text": chunk.text, "finish_reason": chunk.finish_reason}
            yield msgspec.json.encode({"object": "text_completion", "choices": [choice]})
