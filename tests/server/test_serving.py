"""A server answers, tells how its model is, and refuses in words that OpenAI's clients read."""

import asyncio
import gc
import re
import subprocess
import sys

import httpx
import pytest
from support.servers import SETTINGS, frames, serving, text_of
from support.tripping import Trip

from pipeline.cli import main
from pipeline.errors import ConfigError
from pipeline.server.options import ServerOptions
from pipeline.server.process import open_to_stay
from pipeline.server.served import ServedModel
from pipeline.system.hub_cache import BUNDLED

BODY = {"model": "small", "prompt": "import os\n", "max_tokens": 4}


async def test_answers_whole_and_streamed_are_those_of_the_model() -> None:
    async with serving(names=("small",)) as it:
        output = await it.model.generate(BODY["prompt"], max_new_tokens=4)
        whole = await it.client.post("/v1/completions", json=BODY)
        streamed = await it.client.post("/v1/completions", json={**BODY, "stream": True})
        assert (whole.status_code, streamed.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert text_of(frames(streamed.text)) == output.text
        assert (await it.client.get("/health")).json() == {"status": "ready"}
        [model] = (await it.client.get("/v1/models")).json()["data"]
        assert (await it.client.get("/v1/models/small")).json() == model
        assert (await it.client.get("/v1/models/large")).json()["error"]["code"] == "model_not_found"
        told = (await it.client.get("/metrics")).text
        figures = dict(re.findall(r"^penstock:(\w+) ([\d.]+)$", told, re.MULTILINE))
        assert (figures["generation_tokens_total"], figures["time_to_first_token_seconds_count"]) == ("12.0", "2.0")
        assert figures["num_requests_running"] == "0.0"
        assert 'penstock:bytes_streamed_total{link="disk_weights",section="0"}' in told
        assert "section_waited" not in told, "there is one section"


async def test_bad_requests_are_refused_in_the_envelope_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.server.door.MOST_BODY_BYTES", 10_000)
    async with serving(names=("small",), cors=("http://page.example",)) as it:
        ask = it.client.post
        other = asyncio.create_task(ask("/v1/completions", json={**BODY, "max_tokens": 40}))
        page, other_page = {"origin": "http://page.example"}, {"origin": "http://other.example"}
        refused = {
            "too many tokens": (await ask("/v1/completions", json={**BODY, "max_tokens": 99999}), 400),
            "found late": (await ask("/v1/completions", json={**BODY, "prompt": "a b " * 1200, "stream": True}), 400),
            "no route": (await ask("/v1/nowhere"), 404),
            "no method": (await it.client.get("/v1/completions"), 405),
            "body": (await ask("/v1/completions", content=b"x" * 10_001), 413),
            "headers": (await it.client.get("/health", headers={"x-long": "x" * 40_000}), 431),
            "page": (
                await ask("/v1/completions", json=BODY, headers={**other_page, "sec-fetch-site": "cross-site"}),
                403,
            ),
        }
        for name, (answer, status) in refused.items():
            assert answer.status_code == status, name
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}, name
        assert "begin with /v1" in refused["no route"][0].text
        assert (await it.client.get("/v1/nowhere", headers=page)).headers["access-control-allow-origin"]
        allowed = await ask("/v1/completions", json=BODY, headers={**page, "sec-fetch-site": "cross-site"})
        assert allowed.status_code == 200
        assert (await other).status_code == 200


@pytest.mark.parametrize(
    ("listens_on", "allowed", "answered"),
    [
        ("127.0.0.1", (), {"localhost", "10.0.0.7", "here.localhost"}),
        ("::1", ("box.example",), {"localhost", "10.0.0.7", "here.localhost", "box.example"}),
        ("0.0.0.0", (), {"localhost", "10.0.0.7", "here.localhost", "box.example", "stranger.example"}),
        ("0.0.0.0", ("box.example",), {"localhost", "10.0.0.7", "here.localhost", "box.example"}),
        ("127.0.0.1", ("*",), {"localhost", "10.0.0.7", "here.localhost", "box.example", "stranger.example"}),
    ],
)
async def test_a_name_that_is_not_this_machines_is_answered_only_where_others_may_ask(
    listens_on: str, allowed: tuple[str, ...], answered: set[str]
) -> None:
    """A page of a stranger may let its name mean this machine; of addresses and of localhost it cannot."""
    async with serving(opened=False, host=listens_on, allowed_hosts=allowed) as it:
        for name in ("localhost", "10.0.0.7", "here.localhost", "box.example", "stranger.example"):
            answer = await it.client.get("/", headers={"host": f"{name}:8000"})
            assert answer.status_code == (200 if name in answered else 421), name
        for host in ("[::1]:8000", "LOCALHOST.", "127.0.0.1"):
            assert (await it.client.get("/", headers={"host": host})).status_code == 200
        if "stranger.example" not in answered:
            error = (await it.client.get("/health", headers={"host": "stranger.example"})).json()["error"]
            assert error["code"] == "misdirected_request"
            assert "serve with --allowed-host stranger.example" in error["message"]


def test_a_name_to_be_answered_to_has_no_scheme_and_no_port() -> None:
    """And is no pattern, which would never be asked for."""
    for name in ("http://box.example", "box.example:80", "", " ", "*.example"):
        with pytest.raises(ConfigError, match="--allowed-host: need a name without scheme and port"):
            ServerOptions(model=BUNDLED, allowed_hosts=(name,))


async def test_operations_tell_how_the_model_is_run_and_no_texts() -> None:
    async with serving(names=("small",)) as it:
        text = "import os\n"
        other = asyncio.create_task(it.client.post("/v1/completions", json={**BODY, "max_tokens": 40}))
        await it.started()
        told = await it.client.get("/slots")
        [row] = told.json()
        assert (row["state"], row["prompt_tokens"]) == ("running", 4)
        assert "import" not in told.text
        props = (await it.client.get("/props")).json()
        assert (props["total_slots"], props["settings"]["device"], props["family"]) == (64, "cpu", "llama")
        [section] = props["sections"]
        assert sum(one["nbytes"] for one in section["plan"]) == section["budgets"]["host"]["used_bytes"]
        ids = (await it.client.post("/tokenize", json={"prompt": text})).json()
        assert (ids["tokens"], ids["count"]) == (it.model.tokenizer.encode(text), 4)
        back = await it.client.post("/detokenize", json={"tokens": ids["tokens"]})
        assert back.json()["prompt"] == text
        info = (await it.client.get("/tokenizer_info")).json()
        assert (info["bos_token"], info["eos_token"]) == ("<|begin_of_text|>", "<|end_of_text|>")
        assert "message.content" in info["chat_template"]
        for body in (
            b'{"prompt": 3}',
            b"{}",
            b'{"prompt": "a", "messages": []}',
            b'{"prompt": "\xff"}',
            b'{"x":' * 9999,
        ):
            assert (await it.client.post("/tokenize", content=body)).status_code == 400
        assert (await other).status_code == 200


async def test_what_grammars_need_is_made_before_the_model_is_ready_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = {**BODY, "response_format": {"type": "regex", "regex": "[0-9]{2}"}}
    async with serving(names=("small",)) as it:
        monkeypatch.setattr("pipeline.generation.grammar._Bridge", None)
        answer = await it.client.post("/v1/completions", json=body)
        assert re.fullmatch("[0-9]{2}", answer.json()["choices"][0]["text"])
    monkeypatch.setitem(sys.modules, "llguidance", None)
    async with serving(names=("small",)) as it:
        assert (await it.client.get("/health")).json() == {"status": "ready"}
        answer = await it.client.post("/v1/completions", json=body)
        assert (answer.status_code, "not installed" in answer.text) == (400, True)


async def test_slow_answers_show_life_and_then_can_only_be_broken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind in ("EventStream", "WholeAnswer"):
        for name in ("patience_seconds", "every_seconds"):
            monkeypatch.setattr(f"pipeline.server.streaming.{kind}.{name}", 0.001)
    trip = Trip()
    settings = {**SETTINGS, "residency": False, "insert": {"disk_reader": [trip]}}
    async with serving(settings=settings, names=("small",)) as it:
        body = {**BODY, "max_tokens": 12}
        async with it.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as streamed:
            parts = [part async for part in streamed.aiter_text()]
        whole = await it.client.post("/v1/completions", json=body)
        assert ": ping\n\n" in "".join(parts)
        assert len(frames("".join(parts))) >= 12
        assert (whole.content[:1], whole.status_code) == (b"\n", 200)
        assert whole.json()
        asking = asyncio.create_task(it.client.post("/v1/completions", json={**BODY, "max_tokens": 900}))
        while not it.model.statistics().tokens > 30:
            await asyncio.sleep(0.001)
        trip.armed = True
        with pytest.raises(httpx.RemoteProtocolError):
            await asking


async def test_prompts_are_shared_within_a_key_and_with_nobody_else() -> None:
    prompt = "".join(f"value_{number} = {number}\n" for number in range(12))
    async with serving(names=("small",), api_keys=("mine", "yours")) as it:

        async def hits(key: str) -> int:
            before = it.model.statistics().prefixes.hit_tokens
            body = {**BODY, "prompt": prompt}
            headers = {"authorization": f"Bearer {key}"}
            answer = await it.client.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == 200
            await it.idle()
            return it.model.statistics().prefixes.hit_tokens - before

        assert [await hits("mine"), await hits("yours")] == [0, 0]
        assert await hits("mine") >= 16
        refused = [{}, {"authorization": "Bearer other"}, {"authorization": "mine"}, {"authorization": "Bearer ümine"}]
        for headers in refused:
            for path in ("/v1/models", "/metrics", "/nowhere"):
                answer = await it.client.get(path, headers={name: value.encode() for name, value in headers.items()})
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await it.client.get("/health")).status_code == 200


def test_without_the_extra_an_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.tools.commands.serve.MODULES", ("starlette", "no_such_module"))
    assert main(["serve", "bundled"]) == 1
    assert "need no_such_module, which are not installed: pip install no-such-module" in capsys.readouterr().err


def test_the_application_needs_no_torch() -> None:
    code = "import pipeline.server.process, sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(("kv_tokens", "told"), [(2200, "of which the kv room has 2: so many"), (4096, "")])
async def test_how_many_chats_of_no_length_run_together_is_told(
    kv_tokens: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "penstock")
    served = ServedModel(ServerOptions(model=BUNDLED, settings={**SETTINGS, "max_requests": 4, "kv_tokens": kv_tokens}))
    await served.open()
    await served.aclose()
    [ready] = [one.getMessage() for one in caplog.records if one.getMessage().startswith("ready")]
    assert told in ready if told else ready == "ready: the model is bundled"


async def test_what_a_server_has_made_by_the_time_it_is_ready_is_in_no_garbage_collection() -> None:
    served, usual = ServedModel(ServerOptions(model=BUNDLED, settings=SETTINGS)), gc.get_threshold()
    gc.set_threshold(700)
    try:
        await open_to_stay(served)
        frozen, looked_at = gc.get_freeze_count(), len(gc.get_objects())
        assert gc.get_threshold()[0] > 10 * 700
    finally:
        await served.aclose()
        gc.set_threshold(*usual)
        gc.unfreeze()
        gc.freeze()  # as the suite does it: later tests would wait half a second for each whole collection
    assert looked_at < frozen / 10
