"""How fast requests are answered: for the log, and for /metrics."""

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request

from pipeline.server.arguments import naming_fields
from pipeline.server.bodies import Body
from pipeline.server.door import note_of
from pipeline.server.merging import merged
from pipeline.server.served import served_of

if TYPE_CHECKING:
    from pipeline.generation.chunks import Chunk


async def counted(
    request: Request, body: Body, streams: "Sequence[AsyncGenerator[Chunk, None]]"
) -> "AsyncGenerator[tuple[int, Chunk], None]":
    """The chunks of the streams of a request as they come, with the numbers of their prompts, counted.

    Errors are in the words of the request. The streams are closed with this.
    """
    counting = Counting(request)
    with served_of(request).noting_failures(), naming_fields(body):
        async with contextlib.aclosing(merged(streams)) as chunks:
            async for prompt, chunk in chunks:
                counting.take(prompt, chunk)
                yield prompt, chunk


class Counting:
    """Counts the chunks of a request, and takes the times of its prompts: seconds per token are of the first sample."""

    def __init__(self, request: Request) -> None:
        self._note, self._served = note_of(request), served_of(request)
        self._begun: dict[int, float] = {}
        self._behind_first: dict[int, int] = {}

    def take(self, prompt: int, chunk: "Chunk") -> None:
        """Count a chunk of the prompt with this number."""
        self._note.new_tokens += len(chunk.token_ids)
        if prompt not in self._begun:
            now = time.perf_counter()
            self._begun[prompt], self._behind_first[prompt] = now, 0
            self._served.line_failure = None
            self._served.timings.first_token(now - self._note.started, chunk.prompt_tokens)
            self._note.prompt_tokens += chunk.prompt_tokens
        elif chunk.index == 0:
            self._behind_first[prompt] += 1
            if chunk.finish_reason is not None:
                seconds = time.perf_counter() - self._begun[prompt]
                self._served.timings.later_tokens(seconds / self._behind_first[prompt])
