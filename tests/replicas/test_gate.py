"""The gate and replicas in this process, joined without Serve: errors, keys, and clients that leave."""

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from support.servers import SETTINGS, frames

pytest.importorskip("ray.serve")
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from starlette.requests import Request

from pipeline.errors import ClosedError, ConfigError
from pipeline.replicas.gate import Forwarded, Gate
from pipeline.replicas.replica import Replica
from pipeline.server.options import ServerOptions
from pipeline.server.served import ServedModel
from pipeline.system.hub_cache import BUNDLED

ENDED = "the replica that ran this request has ended; ask again"


class Answer:
    """What a handle gives: messages of a replica, then an error."""

    def __init__(self, messages: AsyncIterator[list[Any]], error: Exception | None = None) -> None:
        self._messages, self._error = messages, error
        self.cancelled = False

    async def __aiter__(self) -> AsyncIterator[list[Any]]:
        async for some in self._messages:
            yield some
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """What Serve gives a gate, for replicas that are here."""

    def __init__(self, *replicas: Replica) -> None:
        self._replicas = replicas
        self.sessions: list[str] = []

    def options(self, method_name: str, stream: bool, session_id: str) -> SimpleNamespace:
        self.sessions.append(session_id)
        return SimpleNamespace(remote=lambda *given: Answer(getattr(self._replicas[0], method_name)(*given)))

    def broadcast(self, method_name: str, *given: Any) -> SimpleNamespace:
        async def results_async(timeout_s: float, return_exceptions: bool) -> list[Any]:
            calls = (getattr(one, method_name)(*given) for one in self._replicas)
            return [*await asyncio.gather(*calls), RuntimeError("a replica that ends")]

        return SimpleNamespace(results_async=results_async)


class Alone(Replica):
    """A replica that garbage collections leave alone, as Serve awaits what ends it."""

    def __del__(self) -> None:
        pass

    async def end(self) -> None:
        await Replica.__del__(self)


async def replica(monkeypatch: pytest.MonkeyPatch, name: str, **options: Any) -> Alone:
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id=name))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)
    monkeypatch.setattr("pipeline.replicas.replica._log_with_serve", lambda: None)  # what holds for the whole process
    monkeypatch.setattr("pipeline.replicas.replica.open_to_stay", ServedModel.open)
    it = object.__new__(Alone)
    await it.__init__(ServerOptions(**{"model": BUNDLED, "settings": SETTINGS, **options}))
    return it


def client(handle: Any, *, asks_for_keys: bool = False) -> httpx.AsyncClient:
    gate = Gate(handle, asks_for_keys)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (await gate(Request(scope, receive)))(scope, receive, send)

    transport = httpx.ASGITransport(app, root_path="/under")  # the route_prefix of an application
    return httpx.AsyncClient(transport=transport, base_url="http://localhost/under", trust_env=False)


async def given(*messages: dict[str, Any]) -> AsyncIterator[list[Any]]:
    for message in messages:
        yield [message]


def started(content_type: bytes) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]}


async def forwarded(answer: Answer) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Forwarded(answer)), base_url="http://gate") as asking:
        return await asking.get("/")


async def test_errors_of_serve_are_told_as_those_of_one_process() -> None:
    busy = await forwarded(Answer(given(), BackPressureError(num_queued_requests=3, max_queued_requests=3)))
    assert (busy.status_code, busy.json()["error"]["type"], busy.headers["retry-after"]) == (
        429,
        "rate_limit_error",
        "5",
    )
    before = await forwarded(Answer(given(), ActorDiedError()))
    assert (before.status_code, before.json()["error"]["message"]) == (503, ENDED)
    frame = {"type": "http.response.body", "body": b'data: {"text": "x"}\n\n', "more_body": True}
    within = await forwarded(Answer(given(started(b"text/event-stream; charset=utf-8"), frame), ActorDiedError()))
    first, last = frames(within.text)
    assert (first, last["error"]["message"]) == ({"text": "x"}, ENDED)
    newline = {"type": "http.response.body", "body": b"\n", "more_body": True}
    with pytest.raises(ActorDiedError):
        await forwarded(Answer(given(started(b"application/json"), newline), ActorDiedError()))


async def test_every_answer_that_ends_early_is_cancelled() -> None:
    answer = Answer(given(started(b"application/json")))

    async def send(message: Any) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await Forwarded(answer)({"type": "http"}, send, send)
    assert answer.cancelled


async def test_a_client_that_leaves_ends_its_request_in_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    it = await replica(monkeypatch, "one")
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    for body in ({"stream": True}, {}):
        asked = json.dumps({"prompt": "import os", "max_tokens": 900, **body}).encode()
        messages = it.answer(dict(scope), asked)
        asking = asyncio.create_task(anext(messages))
        async with asyncio.timeout(5):
            while not it._served.model.statistics().requests.running:
                await asyncio.sleep(0.001)
        if body:
            [start, *_] = await asking
            assert (b"x-replica", b"one") in start["headers"]
            await messages.aclose()
        else:
            asking.cancel()
            await asyncio.wait([asking])
        async with asyncio.timeout(5):
            while (said := it._served.model.statistics()).requests.running or said.kv_blocks.used:
                await asyncio.sleep(0.001)
    assert said.requests.cancelled == 2
    it.check_health()
    await it._served.model.aclose()
    with pytest.raises(ClosedError, match="the model serves no more requests"):
        it.check_health()
    await it.end()


async def test_keys_and_paths_are_those_of_the_server_and_metrics_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    two = [await replica(monkeypatch, name, api_keys=("mine", "yours")) for name in ("one", "two")]
    handle = Handle(*two)
    body = {"prompt": "import os\n", "max_tokens": 2}
    mine, yours = ({"authorization": f"Bearer {key}"} for key in ("mine", "yours"))
    async with client(handle, asks_for_keys=True) as asking:
        assert (await asking.post("/v1/completions", json=body)).status_code == 401
        assert (await asking.get("/metrics")).json()["error"]["code"] == "invalid_api_key"
        assert (await asking.get("/health")).json() == {"status": "ready"}
        for headers in (mine, mine, yours):
            assert (await asking.post("/v1/completions", json=body, headers=headers)).status_code == 200
        assert handle.sessions[-3] == handle.sessions[-2] != handle.sessions[-1]
        told = (await asking.get("/metrics", headers=mine)).text
        assert 'penstock:generation_tokens_total{replica="one"} 6.0' in told
        assert 'penstock:generation_tokens_total{replica="two"} 0.0' in told
        monkeypatch.setattr("pipeline.server.door.MOST_BODY_BYTES", 10)
        assert (await asking.post("/v1/completions", json=body, headers=mine)).status_code == 413
    for one in two:
        await one.end()


async def test_a_model_that_cannot_be_opened_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="host memory: need"):
        await replica(monkeypatch, "one", settings={**SETTINGS, "host_memory": "1MB"})
