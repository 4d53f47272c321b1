"""A server with a socket of its own, in the event loop of the test."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from pipeline.server.options import ServerOptions
from pipeline.server.process import Server
from pipeline.server.served import ServedModel
from pipeline.system.hub_cache import BUNDLED

SETTINGS: dict[str, Any] = {"device": "cpu", "share_prefixes": True}


@contextlib.asynccontextmanager
async def serving(
    model: Path = BUNDLED, settings: dict[str, Any] = SETTINGS, *, opened: bool = True, **options: Any
) -> AsyncIterator[tuple[Server, ServedModel, httpx.AsyncClient]]:
    """A server whose model is open, and a client of it."""
    served = ServedModel(ServerOptions(model=model, settings=settings, **options))
    if opened:
        await served.open()
    server = Server(served)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, verify=False) as client:
                yield server, served, client
        finally:
            server.should_exit = True
            await running
            await served.aclose()
