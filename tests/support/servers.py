"""A server with a socket of its own, in the event loop of the test."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pipeline.api import Model
from pipeline.server.options import ServerOptions
from pipeline.server.process import Server
from pipeline.server.served import ServedModel
from pipeline.system.hub_cache import BUNDLED

SETTINGS: dict[str, Any] = {"device": "cpu", "share_prefixes": True}


@dataclass(frozen=True)
class Serving:
    """A server that runs, and a client of it."""

    server: Server
    served: ServedModel
    client: httpx.AsyncClient
    running: asyncio.Task[None]

    @property
    def model(self) -> Model:
        return self.served.model

    async def started(self) -> None:
        """Wait until a request runs."""
        async with asyncio.timeout(5):
            while not self.model.statistics().requests.running:
                await asyncio.sleep(0.001)

    async def idle(self, seconds: float = 5.0) -> None:
        """Wait until no request holds anything."""
        async with asyncio.timeout(seconds):
            while (said := self.model.statistics()).requests.running or said.requests.waiting or said.kv_blocks.used:
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def serving(
    model: Path = BUNDLED, settings: dict[str, Any] = SETTINGS, *, opened: bool = True, **options: Any
) -> AsyncIterator[Serving]:
    """A server whose model is open, unless a test opens it."""
    served = ServedModel(ServerOptions(model=model, settings=settings, **options))
    if opened:
        await served.open()
    server = Server(served)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, verify=False) as client:
                yield Serving(server, served, client, running)
        finally:
            server.should_exit = True
            await running
            await served.aclose()


def frames(text: str) -> list[dict[str, Any]]:
    """The documents of a stream, which must end as one does."""
    events = [event for event in text.split("\n\n") if not event.startswith(":")]
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def text_of(documents: list[dict[str, Any]]) -> str:
    """The text of completions, of which the last chunk may have no choice."""
    return "".join(choice["text"] for one in documents for choice in one["choices"])
