"""An answer and the signs of life between its parts come one after the other."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from pipeline.server.door import NOTE, Note
from pipeline.server.streaming import DONE, PING, EventStream


class Client:
    """Takes what is sent, one message at a time, and a ping when it is told to."""

    def __init__(self) -> None:
        self.pinged, self.takes = asyncio.Event(), asyncio.Event()
        self.took: list[bytes | None] = []
        self._sending = 0

    async def receive(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self._sending += 1
        assert self._sending == 1
        if message.get("body") == PING:
            self.pinged.set()
            await self.takes.wait()
        self.took.append(message.get("body"))
        self._sending -= 1


async def test_a_frame_waits_while_a_ping_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventStream, "patience_seconds", 0.001)
    client = Client()

    async def documents() -> AsyncGenerator[bytes, None]:
        await client.pinged.wait()
        asyncio.get_running_loop().call_later(0.01, client.takes.set)
        yield b"{}"

    async with asyncio.timeout(5):
        await EventStream(documents())({}, client.receive, client.send)
    assert client.took == [None, PING, b"data: {}\n\n", DONE]


async def test_a_client_that_takes_no_ping_has_left_and_leaves_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.server.streaming.STALLED_SECONDS", 0.01)
    monkeypatch.setattr(EventStream, "patience_seconds", 0.001)
    monkeypatch.setattr(EventStream, "every_seconds", 0.01)
    client, note, tasks = Client(), Note(0.0), len(asyncio.all_tasks())

    async def documents() -> AsyncGenerator[bytes, None]:
        await asyncio.Event().wait()
        yield b"{}"

    async with asyncio.timeout(5):
        await EventStream(documents())({NOTE: note}, client.receive, client.send)
    await asyncio.sleep(0.01)
    assert (note.left, client.took, len(asyncio.all_tasks())) == (True, [None], tasks)
