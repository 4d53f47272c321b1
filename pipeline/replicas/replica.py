"""One replica: the server of an open model without a port, to which Serve hands requests."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve
from starlette.types import Message

from pipeline.devices.spinning import spin_little
from pipeline.server.app import make_app
from pipeline.server.options import ServerOptions
from pipeline.server.process import open_to_stay
from pipeline.server.served import ServedModel

NAME_HEADER = b"x-replica"
"""Says which replica has answered, by the name that it has in Serve."""


class Replica:
    """Answers requests by the application that serves one process, too. Serve calls what is here."""

    async def __init__(self, options: ServerOptions) -> None:  # type: ignore[misc]  # which Serve awaits
        """Open the model. Raises PenstockError where it cannot be opened."""
        spin_little()
        _log_with_serve()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._served = ServedModel(options)
        await open_to_stay(self._served)
        self.check_health()
        self._app = make_app(self._served)

    def check_health(self) -> None:
        """Raise what has failed the model for good: Serve puts another replica in the place of this one."""
        if self._served.failure is not None:
            raise self._served.failure

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[list[Message], None]:
        """The messages of an answer (ASGI): lists of those that are there by then.

        Its client has left when this is closed or cancelled: the request ends as in one process.
        """
        given: list[Message] = [{"type": "http.request", "body": body}]
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        left = asyncio.Event()

        async def receive() -> Message:
            if given:
                return given.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        running = asyncio.create_task(self._app(scope, receive, messages.put))
        running.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (first := await messages.get()) is not None:
                yield self._named([first, *_those_there(messages)])
            await running
        finally:
            left.set()
            await asyncio.wait([running])

    async def whole_answer(self, scope: dict[str, Any]) -> tuple[str, list[Message]]:
        """The name of this replica, and all messages of its answer to a request without a body."""
        return self._name, [message async for some in self.answer(scope, b"") for message in some]

    def _named(self, messages: list[Message]) -> list[Message]:
        for message in messages:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (NAME_HEADER, self._name.encode())]
        return messages

    async def __del__(self) -> None:
        """End what still runs, and give everything back; Serve awaits it."""
        await self._served.aclose()


def _those_there(messages: asyncio.Queue[Message | None]) -> list[Message]:
    """Take what came meanwhile, but not the end."""
    there: list[Message] = []
    while not messages.empty():
        if (message := messages.get_nowait()) is None:
            messages.put_nowait(None)
            break
        there.append(message)
    return there


def _log_with_serve() -> None:
    """Requests are told as in one process, in the log of the replica."""
    ours = logging.getLogger("penstock")
    ours.handlers, ours.propagate = logging.getLogger("ray.serve").handlers, False
    ours.setLevel(logging.INFO)
