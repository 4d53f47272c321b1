"""How fast requests are answered: for the log, and for /metrics."""

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from starlette.requests import Request

from pipeline.server.door import note_of
from pipeline.server.served import served_of

if TYPE_CHECKING:
    from pipeline.generation.sequence import Chunk


async def counted(request: Request, chunks: "AsyncGenerator[Chunk, None]") -> "AsyncGenerator[Chunk, None]":
    """The same chunks, counted; they are closed with this. Seconds per token are of the first sample."""
    note, served = note_of(request), served_of(request)
    timings = served.timings
    first = last = 0.0
    behind_first = 0
    with served.noting_failures():
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                now = time.perf_counter()
                if not first:
                    first = last = now
                    served.line_failure = None
                    timings.first_token(now - note.started, chunk.prompt_tokens)
                    note.prompt_tokens += chunk.prompt_tokens
                elif chunk.index == 0:
                    last = now
                    behind_first += 1
                note.new_tokens += len(chunk.token_ids)
                yield chunk
    if behind_first:
        timings.later_tokens((last - first) / behind_first)
