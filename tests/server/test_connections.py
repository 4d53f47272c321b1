"""What comes over a connection beside requests as most clients send them: offers, floods, and other versions."""

import asyncio
import contextlib
import json
import re

import pytest
from support.servers import Serving, serving

END = b"\r\n\r\n"
HOST = b"host: localhost\r\n"
GET = b"GET /health HTTP/1.1\r\n" + HOST
POST = b"POST /tokenize HTTP/1.1\r\n" + HOST
BODY = json.dumps({"prompt": "import os"}).encode()
LENGTH = b"content-length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n\r\n%x" % len(BODY)
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
MANY = b"x" * 30_000
LARGE = json.dumps({"prompt": "a " * 50_000}).encode()
HEAD_OF_LARGE = POST + b"content-length: %d\r\n\r\n" % len(LARGE)


async def answers(it: Serving, *parts: bytes, count: int = 1) -> bytes:
    """What comes until the connection ends, or until so many answers have begun; parts are read one by one."""
    reader, writer = await asyncio.open_connection(it.client.base_url.host, it.client.base_url.port)
    got = b""
    with contextlib.closing(writer):
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.01)
        while (some := await reader.read(1 << 16)) and (got := got + some).count(b"HTTP/1.1 ") < count:
            pass
    return got


async def test_offers_of_other_protocols_are_declined_and_floods_refused() -> None:
    cases: dict[str, tuple[tuple[bytes, ...], list[int]]] = {
        "offer": ((POST + OFFER + LENGTH + BODY, POST + LENGTH + BODY), [200, 200]),
        "offer in parts": ((POST + OFFER + LENGTH, BODY, GET + OFFER + b"\r\n"), [200, 200]),
        "offer and chunks": ((POST + OFFER + CHUNKED + b"\r\n", BODY + b"\r\n0" + END + GET + b"\r\n"), [200, 200]),
        "tunnel": ((b"CONNECT /health HTTP/1.1\r\n" + OFFER + b"\r\n",), [405]),
        "tunnel elsewhere": ((b"CONNECT x:1 HTTP/1.1\r\n" + HOST + b"\r\n",), [400]),
        "no HTTP": ((b"\x16\x03\x01\x02",), [400]),
        "endless header": ((GET + b"x: " + MANY, MANY, MANY), [400]),
        "endless path": ((b"GET /", MANY, MANY, MANY), [400]),
        "endless trailer": ((POST + CHUNKED + b"\r\n" + BODY + b"\r\n0\r\nx: ", MANY, MANY, MANY), [400]),
        "endless extension": ((POST + CHUNKED + b";", MANY, MANY, MANY), [400]),
        "several large heads": ((GET + b"x: " + MANY + END,) * 3, [200] * 3),
        "large body": ((HEAD_OF_LARGE, LARGE[:40_000], LARGE[40_000:80_000], LARGE[80_000:]), [200]),
    }
    async with serving(names=("small",)) as it:
        for name, (parts, statuses) in cases.items():
            async with asyncio.timeout(10):
                got = await answers(it, *parts, count=len(statuses))
            assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", got)] == statuses, name


async def test_a_connection_is_not_idle_while_it_answers_its_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.server.process.IDLE_SECONDS", 0.05)
    body = json.dumps({"prompt": "import os\n", "max_tokens": 60, "stream": True}).encode()
    long = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"content-length: %d\r\n\r\n" % len(body) + body
    async with asyncio.timeout(20), serving(names=("small",)) as it:
        got = await answers(it, GET + b"\r\n", long, count=3)
    assert b"[DONE]" in got


async def test_a_whole_answer_that_comes_soon_is_no_chunks() -> None:
    async with serving(names=("small",)) as it:
        answer = await it.client.post("/v1/completions", json={"prompt": "import os\n", "max_tokens": 2})
        assert int(answer.headers["content-length"]) == len(answer.content)
