"""The limits of connections: how many there are, and how long one may take to say what it wants."""

import asyncio
import resource

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline.server.errors import RETRY_AFTER_SECONDS, ApiError, envelope

MOST_CONNECTIONS = 4096
REQUEST_SECONDS = 30.0
"""For the headers of a request, from the first byte of the connection or of the request."""
MOST_UNFINISHED_BYTES = 64 << 10
"""Headers, or what claims to be some, before the connection is broken off; the door refuses shorter ones in words."""
BUSY = envelope(ApiError(429, "the server has as many connections as it can; try again"))


def most_connections() -> int:
    """Connections that may be open; half of the descriptors that the process may have are left to the model."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_CONNECTIONS if descriptors == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, descriptors // 2)


class Connection(HttpToolsProtocol):
    """A connection of uvicorn, which is refused where there are too many, and ended where no request comes.

    The parser has no limits of its own: `_unfinished_bytes` have come of a head, or behind a body, without an end.
    """

    _too_slow: asyncio.TimerHandle | None = None
    _unfinished_bytes = 0

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
        self._unset_keepalive_if_required()
        self._unfinished_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as offer:
            if not self._is_tunnel:
                self._decline(data[offer.args[0] :])
        except HttpParserError:
            self._refuse("Invalid HTTP request received.")
        if self._unfinished_bytes > MOST_UNFINISHED_BYTES and not self.transport.is_closing():
            self._refuse("Headers without an end received.")
        self._watch()

    def _refuse(self, message: str) -> None:
        self.logger.warning(message)
        self.send_400_response(message)

    def _decline(self, behind_head: bytes) -> None:
        """Read a request that offers another protocol once more, without the offer."""
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += name, b": ", value, b"\r\n"
        self.data_received(b"".join([*head, b"\r\n", behind_head]))

    @property
    def _is_offer(self) -> bool:
        """Whether the request offers another protocol: the parser takes it for one without a body."""
        return self.parser.should_upgrade() and not self._is_tunnel

    @property
    def _is_tunnel(self) -> bool:
        return self.parser.get_method() == b"CONNECT"

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        self._unfinished_bytes = 0
        if not self._is_offer:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Know that the body is whole."""
        if not self._is_offer:
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Take some of a body."""
        self._unfinished_bytes = 0
        super().on_body(body)

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
