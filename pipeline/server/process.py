"""The server as a process: it listens before the model opens, and ends in order when it is told to."""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import resource
import signal
import socket
from collections.abc import Iterator

import uvicorn

from pipeline.errors import ResourceError
from pipeline.server.app import make_app
from pipeline.server.connections import MOST_CONNECTIONS, Connection
from pipeline.server.options import ServerOptions
from pipeline.server.served import ServedModel

logger = logging.getLogger("penstock")
BACKLOG = 2048
MOST_DESCRIPTORS = 4 * MOST_CONNECTIONS
IDLE_SECONDS = 75
"""How long a connection may wait for its next request; longer than clients keep one, so that they close it first."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
FAREWELL_SECONDS = 2.0
"""For the last errors to reach clients, after the model has ended their requests."""
YOUNG_OBJECTS = 20_000
"""New ones that a garbage collection waits for, a few megabytes: with 64 requests at once on an H200 that made 4 % more
tokens a second than Python's 700."""


async def serve_model(options: ServerOptions) -> int:
    """Serve until a signal. Returns 0, or 128 plus its number where running requests were ended.

    Raises ResourceError where the port cannot be had, PenstockError where the model cannot be opened.
    """
    _allow_descriptors()
    with contextlib.closing(listening(options)) as port:
        served = ServedModel(options)
        server = Server(served)
        opening = asyncio.create_task(open_to_stay(served))
        try:
            host, number = port.getsockname()[:2]
            tell_where(host, number, options)
            await server.serve(sockets=[port])
        finally:
            opening.cancel()
            await asyncio.wait([opening])
            await served.aclose()
    if served.failure is not None:
        raise served.failure
    return server.status


async def open_to_stay(served: ServedModel) -> None:
    """Open the model, and take what there is by then out of garbage collections.

    Nearly all of it stays until the process ends. Looking through it stopped all answers for 0.1 s, once in some
    hundred requests. What comes later is looked through less often than Python does it: each token makes objects.
    """
    await served.open()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


class Server(uvicorn.Server):
    """uvicorn in an event loop of our own. The first signal lets requests finish, a second one ends them at once."""

    def __init__(self, served: ServedModel) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(served),
                lifespan="off",
                ws="none",
                http=Connection,
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=IDLE_SECONDS,
            )
        )
        self.status = 0
        self._served = served
        self._ending: asyncio.Task[None] | None = None

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end; asked ten times a second."""
        self.should_exit = self.should_exit or self._served.failure is not None
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals of the process end the server within, between two turns of the event loop."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.end, number)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
            if self._ending is not None:
                self._ending.cancel()

    def end(self, number: int) -> None:
        """Serve no new requests, and end when those that run have finished; or at once, when told so before."""
        seconds = 0.0 if self.should_exit else self._served.options.drain_seconds
        if self._ending is not None:
            self._ending.cancel()
        self._served.draining = self.should_exit = True
        self._ending = asyncio.create_task(self._end_after(seconds, number))

    async def _end_after(self, seconds: float, number: int) -> None:
        if seconds:
            logger.info("ending; running requests have %g s to finish, or until the next signal", seconds)
            await asyncio.sleep(seconds)
        if self.server_state.tasks:
            self.status = 128 + number
            logger.warning("ending %d requests that still run", len(self.server_state.tasks))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._served.aclose()  # which goes on when this wait ends
                await asyncio.sleep(FAREWELL_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # its client reads nothing


def _allow_descriptors() -> None:
    """Take as many descriptors as the process may have: each connection needs one."""
    have, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = MOST_DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, MOST_DESCRIPTORS)
    if have != resource.RLIM_INFINITY and have < want:
        resource.setrlimit(resource.RLIMIT_NOFILE, (want, most))


def listening(options: ServerOptions) -> socket.socket:
    """A socket that listens already, so that a taken port is told before anything takes time. Raises ResourceError."""
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((options.host, options.port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror  # of names it is below 0
        raise ResourceError(
            f"cannot listen on {options.host}, port {options.port}: {why}; choose another --host or --port; --port 0 "
            "takes a free one"
        ) from error


def tell_where(host: str, port: int, options: ServerOptions) -> None:
    """Say in the log where to ask, and warn where everybody may."""
    logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    if not (options.api_keys or ipaddress.ip_address(host).is_loopback):
        logger.warning("whoever reaches this port may ask, and read in /props how the model is run; give --api-key KEY")
