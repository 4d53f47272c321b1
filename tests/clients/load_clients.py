"""The clients of load.py: they read their orders and the word to begin from stdin, and print what they have got."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any


async def ask_all(orders: dict[str, Any]) -> int:
    """Ask for all answers at once, when told to; print when each came, in seconds of the machine's monotonic clock."""
    print("ready", flush=True)
    sys.stdin.readline()
    answers = await asyncio.gather(*(ask(orders["port"], order) for order in orders["orders"]))
    for answer in answers:  # when all is over: what clients compute is no part of what is measured
        documents = [json.loads(frame) for frame in answer.pop("frames")]
        if errors := [document["error"] for document in documents if "error" in document]:
            raise SystemExit(f"error: {errors[0]}")
        answer["text"] = "".join(choice["text"] for document in documents for choice in document["choices"])
    print(json.dumps(answers))
    return 0


async def ask(port: int, order: dict[str, Any]) -> dict[str, Any]:
    """Stream one completion over a connection of its own, and leave after some tokens where the order says so."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    body = json.dumps({"stream": True, "temperature": 0, "ignore_eos": True, **order["body"]}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    asked = time.monotonic()
    writer.write(head.encode() + b"\r\n\r\n" + body)
    frames: list[bytes] = []
    times: list[float] = []
    first_byte = 0.0
    async for line in lines(reader):
        first_byte = first_byte or time.monotonic()
        if line.startswith(b"data: {"):
            frames.append(line[6:])
            times.append(time.monotonic())
        if line == b"data: [DONE]" or len(times) == order["leaves_after"]:
            break
    writer.close()
    return {"frames": frames, "asked": asked, "first_byte": first_byte, "times": times}


async def lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of an answer, of which the head and the sizes of chunks are left out."""
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"{status!r}: {(await reader.read(2000))!r}")
    while (await reader.readline()).strip():
        pass
    while size := int(await reader.readline(), 16):
        chunk = await reader.readexactly(size + 2)
        for line in chunk[:-2].split(b"\n"):
            if line:
                yield line


if __name__ == "__main__":
    sys.exit(asyncio.run(ask_all(json.loads(sys.stdin.readline()))))
