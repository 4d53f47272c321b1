"""The limits of connections: how many there are, and how long one may take to say what it wants."""

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.server.errors import RETRY_AFTER_SECONDS, ApiError, envelope

MOST_CONNECTIONS = 4096
REQUEST_SECONDS = 30.0
"""For the headers of a request, from the first byte of the connection or of the request."""
BUSY = envelope(ApiError(429, "the server has as many connections as it can; try again"))


def most_connections() -> int:
    """Connections that may be open; half of the descriptors that the process may have are left to the model."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_CONNECTIONS if descriptors == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, descriptors // 2)


class Connection(H11Protocol):
    """A connection of uvicorn, which is refused where there are too many, and ended where no request comes."""

    _too_slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Begin to read, or refuse."""
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            head = f"HTTP/1.1 429 Too Many Requests\r\nretry-after: {RETRY_AFTER_SECONDS}\r\nconnection: close\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(BUSY)}\r\n\r\n"
            transport.write(head.encode() + BUSY)
            transport.close()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        if self._too_slow is not None:
            self._too_slow.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Let the time run while a request is awaited; behind a whole one, uvicorn waits for the next one itself."""
        awaited = self.cycle is None or (self.cycle.response_complete and self.timeout_keep_alive_task is None)
        if awaited and self._too_slow is None:
            self._too_slow = self.loop.call_later(REQUEST_SECONDS, self.transport.close)
        elif not awaited and self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None
