"""Answers that take long: events as they come, or one document. Work for a client that has left is cancelled."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.types import Receive, Scope, Send

from pipeline.errors import PenstockError
from pipeline.server.door import NOTE
from pipeline.server.errors import ApiError, as_api_error, envelope

logger = logging.getLogger("penstock")
PING, DONE = b": ping\n\n", b"data: [DONE]\n\n"
HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
STALLED_SECONDS = 120.0
"""How long a client may read nothing before it counts as gone: its request holds KV blocks meanwhile."""


class SlowResponse:
    """Says nothing for `patience_seconds`, in which an error still gets a status of its own; then that it is alive.

    The status is 200 from then on, and `filler` is sent whenever nothing came for `every_seconds`: clients and proxies
    end connections on which nothing comes.
    """

    patience_seconds: float
    every_seconds: float
    filler: bytes
    media_type: bytes

    def __init__(self) -> None:
        self._started = self._is_sending = False
        self._sent = 0.0
        self._filling: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Raises what the work raises, unless the answer has begun. Of a client that leaves a note is taken."""
        self._loop, self._send = asyncio.get_running_loop(), send
        try:
            async with asyncio.timeout(None) as staying:
                watching = self._loop.create_task(self._watch(receive, staying))
                try:
                    await self._answer()
                finally:
                    watching.cancel()
                    if self._filling is not None:
                        self._filling.cancel()
        except TimeoutError:
            if not staying.expired():
                raise
            scope[NOTE].left = True

    async def _answer(self) -> None:
        try:
            await self.answer()
        except Exception as error:
            if not self._started:
                raise
            if not isinstance(error, PenstockError | ApiError):
                logger.exception("an answer that had begun failed")
            await self.fail(error)

    async def answer(self) -> None:
        """Send all of the answer."""
        raise NotImplementedError

    async def fail(self, error: Exception) -> None:
        """Tell a client, to which the status 200 was sent, of an error."""
        raise NotImplementedError

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send some of the answer; headers first. It waits while the client reads nothing."""
        if self._filling is not None:
            await self._filling
            self._filling = None
        await self._put(data, more=more)

    async def _put(self, data: bytes, *, more: bool) -> None:
        self._sent, self._is_sending = self._loop.time(), True
        if not self._started:
            self._started = True
            headers = [(b"content-type", self.media_type), *HEADERS]
            if not more:
                headers.append((b"content-length", b"%d" % len(data)))
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._is_sending = False

    async def _watch(self, receive: Receive, staying: asyncio.Timeout) -> None:
        """End the answer when the client leaves, or lets nothing through; send the filler when nothing else is sent."""
        seconds = self.patience_seconds
        while not await _leaves_within(seconds, receive):
            quiet_seconds = self._loop.time() - self._sent
            seconds = self.every_seconds
            if self._is_sending:
                if quiet_seconds >= STALLED_SECONDS:
                    break
            elif quiet_seconds >= self.every_seconds:
                self._filling = self._loop.create_task(self._put(self.filler, more=True))
            else:
                seconds -= quiet_seconds
        staying.reschedule(self._loop.time())


class EventStream(SlowResponse):
    """Server-sent events: a frame for each JSON document of a generator, comments meanwhile, and [DONE].

    An error after the first byte is a frame of its own, which clients raise. The generator is closed when the client
    leaves.
    """

    media_type = b"text/event-stream; charset=utf-8"
    patience_seconds = 0.25
    every_seconds = 1.0
    filler = PING

    def __init__(self, documents: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._documents = documents

    async def answer(self) -> None:
        """Send the frames as they come."""
        async with contextlib.aclosing(self._documents) as documents:
            async for document in documents:
                await self.send(b"data: " + document + b"\n\n")
        await asyncio.sleep(0)  # the last frames of others that end with the same pass go first
        await self.send(DONE, more=False)

    async def fail(self, error: Exception) -> None:
        """Send a frame with the error."""
        if as_api_error(error).status == 500:
            logger.error("a stream ends with this: %s", error)
        await self.send(b"data: " + envelope(error) + b"\n\n" + DONE, more=False)


class WholeAnswer(SlowResponse):
    """One JSON document, which `work` returns.

    White space goes before it when it takes long. An error after that breaks the connection off: under the status 200
    a client would take it for an answer.
    """

    media_type = b"application/json"
    patience_seconds = 20.0
    every_seconds = 20.0
    filler = b"\n"

    def __init__(self, work: Callable[[], Awaitable[bytes]]) -> None:
        super().__init__()
        self._work = work

    async def answer(self) -> None:
        """Send the document when it is there."""
        await self.send(await self._work(), more=False)

    async def fail(self, error: Exception) -> None:
        """Leave the answer incomplete, so that the server closes the connection."""
        logger.error("a connection is broken off, as its status was sent before this: %s", error)


async def _leaves_within(seconds: float, receive: Receive) -> bool:
    """Whether the client closes its connection within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True
