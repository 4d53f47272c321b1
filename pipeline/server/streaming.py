"""Answers that take long: events as they come, or one document. Work for a client that has left is cancelled."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipeline.errors import PenstockError
from pipeline.server.door import NOTE
from pipeline.server.errors import ApiError, envelope

logger = logging.getLogger("penstock")
PING, DONE = b": ping\n\n", b"data: [DONE]\n\n"
STALLED_SECONDS = 120.0
"""How long a client may read nothing before it counts as gone: its request holds KV blocks meanwhile."""


class ClientLeft(Exception):
    """The client has closed its connection before it had its answer."""


class SlowResponse(Response):
    """Says nothing for `patience_seconds`, in which an error still gets a status of its own; then that it is alive.

    The status is 200 from then on, and `filler` is sent whenever nothing came for `every_seconds`: clients and proxies
    end connections on which nothing comes.
    """

    patience_seconds: float
    every_seconds: float
    filler: bytes

    def __init__(self) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._sending = asyncio.Lock()
        self._started = False
        self._sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Raises what the work raises, unless the answer has begun. Of a client that leaves a note is taken."""
        self._send = send
        try:
            await self._answer(receive)
        except ClientLeft:
            scope[NOTE].left = True

    async def _answer(self, receive: Receive) -> None:
        async with _watched(receive) as staying:
            filling = asyncio.create_task(self._fill(staying))
            try:
                await self.answer()
            except Exception as error:
                if not self._started:
                    raise
                if not isinstance(error, PenstockError | ApiError):
                    logger.exception("an answer that had begun failed")
                await self.fail(error)
            finally:
                filling.cancel()

    async def answer(self) -> None:
        """Send all of the answer."""
        raise NotImplementedError

    async def fail(self, error: Exception) -> None:
        """Tell a client, to which the status 200 was sent, of an error."""
        raise NotImplementedError

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send some of the answer; headers first. It waits while the client reads nothing."""
        async with self._sending:
            self._sent = asyncio.get_running_loop().time()
            if not self._started:
                self._started = True
                await self._send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _fill(self, staying: asyncio.Timeout) -> None:
        """Send the filler when nothing else is sent. A client that does not let it through counts as gone."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.patience_seconds)
        try:
            while True:
                if loop.time() - self._sent >= self.every_seconds:
                    async with asyncio.timeout(STALLED_SECONDS):
                        await self.send(self.filler)
                await asyncio.sleep(self._sent + self.every_seconds - loop.time())
        except TimeoutError:
            staying.reschedule(loop.time())


class EventStream(SlowResponse):
    """Server-sent events: a frame for each JSON document of a generator, comments meanwhile, and [DONE].

    An error after the first byte is a frame of its own, which clients raise. The generator is closed when the client
    leaves.
    """

    media_type = "text/event-stream"
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
        await self.send(b"data: " + envelope(error) + b"\n\n" + DONE, more=False)


class WholeAnswer(SlowResponse):
    """One JSON document, which `work` returns.

    White space goes before it when it takes long. An error after that breaks the connection off: under the status 200
    a client would take it for an answer.
    """

    media_type = "application/json"
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


@contextlib.asynccontextmanager
async def _watched(receive: Receive) -> AsyncIterator[asyncio.Timeout]:
    """Cancel what is awaited within when the client leaves, and raise ClientLeft; so does the end of what is given."""
    try:
        async with asyncio.timeout(None) as staying:
            watching = asyncio.create_task(_end_when_left(receive, staying))
            try:
                yield staying
            finally:
                watching.cancel()
    except TimeoutError:
        if not staying.expired():
            raise
        raise ClientLeft from None


async def _end_when_left(receive: Receive, staying: asyncio.Timeout) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    staying.reschedule(asyncio.get_running_loop().time())
