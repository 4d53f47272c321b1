"""Clients leave, lines fail, signals come: what was held is given back, and others are served."""

import asyncio
import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from support.servers import SETTINGS, frames, serving, text_of
from support.tripping import Trip

from actors.core.message import GroupKey
from pipeline.errors import CheckpointError, ClosedError
from pipeline.reading.source import CheckpointSource
from pipeline.server.options import ServerOptions
from pipeline.server.process import serve_model

BODY = {"model": "small", "prompt": "import os\n", "max_tokens": 20}
LONG = {**BODY, "max_tokens": 900}
HEAD = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n"


async def test_clients_that_leave_or_read_nothing_free_their_requests(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(names=("small",)) as it:
        tasks = it.server.server_state.tasks
        for stream in (True, False):
            asking = asyncio.create_task(it.client.post("/v1/completions", json={**LONG, "stream": stream}))
            await it.started()
            asking.cancel()
            await it.idle()
            async with asyncio.timeout(5):
                while tasks:
                    await asyncio.sleep(0.001)
        assert not caplog.records, "that is nobody's mistake"
        monkeypatch.setattr("pipeline.server.streaming.STALLED_SECONDS", 0.05)
        monkeypatch.setattr("pipeline.server.streaming.EventStream.every_seconds", 0.05)
        asking = asyncio.create_task(it.client.post("/v1/completions", json={**LONG, "stream": True}))
        await it.started()
        [connection] = [one for one in it.server.server_state.connections if one.cycle is not None]
        connection.flow.pause_writing()  # as the transport does when the kernel takes no more
        await it.idle()
        asking.cancel()
        assert it.model.statistics().requests.cancelled == 3


async def test_a_line_that_fails_serves_the_next_and_one_that_is_gone_ends_the_server() -> None:
    trip = Trip()
    settings = {**SETTINGS, "residency": False, "insert": {"disk_reader": [trip]}}
    async with serving(settings=settings, names=("small",)) as it:
        bodies = [{**LONG, "stream": True}, LONG]
        asking = [asyncio.create_task(it.client.post("/v1/completions", json=body)) for body in bodies]
        await it.started()
        trip.armed = True
        streamed, whole = await asyncio.gather(*asking)
        documents = frames(streamed.text) if streamed.status_code == 200 else [streamed.json()]
        assert "trip failed at layer" in documents[-1]["error"]["message"]
        assert (whole.status_code, whole.headers["x-should-retry"]) == (500, "false")
        assert "trip failed at layer" in whole.json()["error"]["message"]
        failing = await it.client.get("/health")
        assert (failing.status_code, failing.json()["status"]) == (503, "failing")
        assert (await it.client.post("/v1/completions", json=BODY)).status_code == 200
        assert (await it.client.get("/health")).json() == {"status": "ready"}
        it.model._supervisor._task.cancel()
        async with asyncio.timeout(5):
            await it.running
        assert isinstance(it.served.failure, ClosedError)


async def test_an_error_names_its_place_and_only_the_log_the_paths_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(self: CheckpointSource, key: GroupKey, buffer: object) -> None:
        raise OSError(errno.EIO, "Input/output error: at byte 7", "/home/somebody/model/weights")

    monkeypatch.setattr("pipeline.server.streaming.EventStream.patience_seconds", 0.001)
    async with serving(settings={**SETTINGS, "residency": False}, names=("small",)) as it:
        monkeypatch.setattr(CheckpointSource, "read_into", fails)
        asking = (it.client.post("/v1/completions", json={**LONG, "stream": stream}) for stream in (True, False))
        answers = [*await asyncio.gather(*asking), await it.client.get("/health")]
    for answer in answers:
        assert re.search(
            r"disk_reader failed at layer \d group '\w+': OSError: Input/output error; the log", answer.text
        )
        assert "somebody" not in answer.text
    for told in ("a stream ends with this: disk_reader", "POST /v1/completions failed: disk_reader"):
        [line] = [message for message in caplog.messages if message.startswith(told)]
        assert line.endswith("'/home/somebody/model/weights'")


async def test_a_pass_that_is_stuck_is_told_with_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.server.pass_watch.STUCK_SECONDS", 0.2)
    monkeypatch.setattr("pipeline.server.pass_watch.LOOK_SECONDS", 0.01)
    answers_again, read_into = asyncio.Event(), CheckpointSource.read_into

    async def hangs(self: CheckpointSource, key: GroupKey, buffer: object) -> None:
        await answers_again.wait()
        await read_into(self, key, buffer)

    async with serving(settings={**SETTINGS, "residency": False}, names=("small",)) as it:
        await asyncio.sleep(0.4)
        assert (await it.client.get("/health")).json() == {"status": "ready"}, "nobody asks for anything"
        expected = (await it.client.post("/v1/completions", json=BODY)).text
        monkeypatch.setattr(CheckpointSource, "read_into", hangs)
        asking = asyncio.create_task(it.client.post("/v1/completions", json=BODY))
        async with asyncio.timeout(5):
            while (answer := await it.client.get("/health")).status_code == 200:
                await asyncio.sleep(0.02)
        waits = r"nothing has been read, moved or computed for 0 s: pinned_stager waits for bytes on their way from "
        waits += r"disk_reader at layer \d group '\w+'"
        assert answer.json()["status"] == "stuck"
        assert re.search(waits, answer.json()["reason"])
        assert re.search(waits, caplog.text)
        answers_again.set()
        assert (await asking).json()["choices"] == json.loads(expected)["choices"]
        assert (await it.client.get("/health")).json() == {"status": "ready"}
    assert "the pass that was stuck goes on" in caplog.text


async def test_the_first_signal_lets_requests_finish_and_refuses_new_ones() -> None:
    settings = {**SETTINGS, "max_requests": 1, "max_waiting": 0}
    async with serving(settings=settings, names=("small",)) as it:
        output = await it.model.generate(BODY["prompt"], max_new_tokens=20)
        async with it.client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as streamed:
            for stream in (True, False):
                busy = await it.client.post("/v1/completions", json={**BODY, "stream": stream})
                assert (busy.status_code, busy.json()["error"]["code"]) == (429, "rate_limit_exceeded")
                assert int(busy.headers["retry-after"])
            chat = {"model": "small", "messages": [{"role": "user", "content": "a"}], "n": 2}
            never = await it.client.post("/v1/chat/completions", json=chat)
            assert (never.status_code, never.json()["error"]["param"]) == (400, "n")
            it.server.end(signal.SIGTERM)
            assert it.served.state == "draining"
            async with asyncio.timeout(5):
                text = (await streamed.aread()).decode()
        assert text_of(frames(text)) == output.text
        await it.running
        assert it.server.status == 0
        with pytest.raises(httpx.ConnectError):
            await it.client.get("/health")


@pytest.mark.parametrize("again", [True, False])
async def test_a_second_signal_and_the_deadline_end_requests_with_an_error(again: bool) -> None:
    async with serving(names=("small",), drain_seconds=30 if again else 0.05) as it:
        async with it.client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as streamed:
            await it.started()
            it.server.end(signal.SIGTERM)
            if again:
                it.server.end(signal.SIGINT)
            async with asyncio.timeout(5):
                documents = frames((await streamed.aread()).decode())
        assert documents[-1]["error"]["type"] == "service_unavailable_error"
        await it.running
        assert it.server.status == 128 + (signal.SIGINT if again else signal.SIGTERM)


async def test_while_the_model_opens_and_when_it_cannot_the_state_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path, opened=False) as it:
        answers = [await it.client.get("/health"), await it.client.post("/v1/completions", json=BODY)]
        assert [answer.status_code for answer in answers] == [503, 503]
        assert all(int(answer.headers["retry-after"]) for answer in answers)
        await it.served.open()
        answer = await it.client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "failed")
        assert answer.json()["reason"] == "CheckpointError; the log of the server says more"
        await it.running
    with pytest.raises(CheckpointError, match=r"config\.json"):
        await serve_model(ServerOptions(model=tmp_path, port=0))


async def test_connections_are_limited_in_number_and_in_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.server.connections.MOST_CONNECTIONS", 3)
    monkeypatch.setattr("pipeline.server.connections.REQUEST_SECONDS", 0.3)
    monkeypatch.setattr("pipeline.server.door.BODY_SECONDS", 0.3)
    async with serving(names=("small",)) as it:
        host, port = it.client.base_url.host, it.client.base_url.port

        async def says(text: str) -> str:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(text.encode())
            with contextlib.closing(writer):
                return (await reader.read(1 << 16)).decode()

        async with asyncio.timeout(5):
            silent = [asyncio.create_task(says(text)) for text in ("", "GET /heal", HEAD.format(100))]
            while len(it.server.server_state.connections) < 3:
                await asyncio.sleep(0.001)
            assert "429" in (refused := await says("GET /health HTTP/1.1\r\n\r\n"))
            assert "retry-after" in refused
            answers = await asyncio.gather(*silent)
            assert answers[:2] == ["", ""]
            assert "408" in answers[2]
            assert (await it.client.get("/health")).status_code == 200


def test_the_command_listens_at_once_and_ends_with_status_0() -> None:
    command = [sys.executable, "-m", "pipeline", "serve", "bundled", "--device", "cpu", "--port", "0"]
    environment = {**os.environ, "PENSTOCK_API_KEY": "secret"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        [url] = re.findall(r"listening on (\S+)", process.stderr.readline())
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 503
        assert httpx.get(f"{url}/metrics", trust_env=False).status_code == 401
        while "ready" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert "secret" not in process.stderr.read()
