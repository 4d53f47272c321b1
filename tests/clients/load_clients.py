"""The clients of load.py: they read their orders and the word to begin from stdin, and print what they have got.

What clients compute is no part of what is measured, so they keep what comes and read it when all is over.
"""

import asyncio
import bisect
import json
import sys
import time
from typing import Any

import uvloop

END = b"0\r\n\r\n"
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


async def ask_all(orders: dict[str, Any]) -> int:
    """Ask for all answers at once, when told to; print when each came, in seconds of the machine's monotonic clock."""
    print("ready", flush=True)
    sys.stdin.readline()
    clients = [Client(order) for order in orders["orders"]]
    await asyncio.gather(*(client.ask(orders["port"]) for client in clients))
    print(json.dumps([client.answer() for client in clients]))
    return 0


class Client(asyncio.Protocol):
    """Streams one completion over a connection of its own, and leaves after some tokens where its order says so."""

    def __init__(self, order: dict[str, Any]) -> None:
        body = json.dumps({"stream": True, "temperature": 0, "ignore_eos": True, **order["body"]}).encode()
        self._request = HEAD.format(len(body)).encode() + body
        self._leaves_after = order["leaves_after"]
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked = 0.0
        self._tokens, self._tail = 0, b""
        self._parts: list[bytes] = []
        self._times: list[float] = []

    async def ask(self, port: int) -> None:
        """Connect, ask, and wait for the end."""
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)
        self._asked = time.monotonic()
        transport.write(self._request)
        await self._ended
        transport.close()

    def data_received(self, data: bytes) -> None:
        """Keep what comes, and when."""
        self._times.append(time.monotonic())
        self._parts.append(data)
        self._tokens += data.count(b"data: {")
        self._tail = (self._tail + data)[-len(END) :]
        if (self._tail == END or self._tokens == self._leaves_after) and not self._ended.done():
            self._ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        if not self._ended.done():
            self._ended.set_result(None)

    def answer(self) -> dict[str, Any]:
        """The text, and the times at which its frames were whole."""
        head, _, body = b"".join(self._parts).partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise SystemExit(f"{head!r}: {body!r}")
        ends = []
        end = -len(head) - 4
        for part in self._parts:
            ends.append(end := end + len(part))
        text, times, begin = "", [], 0
        while (size_ends := body.find(b"\r\n", begin)) > 0:
            size = int(body[begin:size_ends], 16)
            chunk, begin = body[size_ends + 2 : size_ends + 2 + size], size_ends + 2 + size + 2
            if size and chunk.startswith(b"data: {") and begin <= len(body):
                document = json.loads(chunk[6:])
                if "error" in document:
                    raise SystemExit(f"error: {document['error']}")
                text += "".join(choice["text"] for choice in document["choices"])
                times.append(self._times[bisect.bisect_left(ends, begin)])
        return {"text": text, "asked": self._asked, "first_byte": self._times[0], "times": times}


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(ask_all(json.loads(sys.stdin.readline()))))
