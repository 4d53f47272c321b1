"""/v1/chat/completions answers as the model does, in one piece and in many."""

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.servers import frames, serving

from pipeline import Model
from pipeline.system.hub_cache import BUNDLED

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}# {{ m.role }} {{ m.tool_calls | tojson if m.tool_calls }}\n"
    "{{ m.content }}\n{% endfor %}{% if tools %}# {{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}# {{ reasoning_effort or 'assistant' }}\n{% endif %}"
)
CHAT = [{"role": "system", "content": "Write Python."}, {"role": "user", "content": "import os"}]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Model, httpx.AsyncClient]]:
    shutil.copytree(BUNDLED, tmp_path / "small")
    (tmp_path / "small" / "chat_template.jinja").write_text(TEMPLATE)
    async with serving(tmp_path / "small", {"device": "cpu", "context_tokens": 96}) as it:
        yield it.model, it.client


async def ask(client: httpx.AsyncClient, messages: Any = CHAT, **fields: Any) -> dict[str, Any]:
    """The answer, which is the same when it is streamed."""
    body = {"messages": messages, "max_tokens": 4, **fields}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    whole: dict[str, Any] = answer.json()
    streamed = await client.post("/v1/chat/completions", json={**body, "stream": True})
    documents = frames(streamed.text)
    for choice in whole["choices"]:
        parts = [one for document in documents for one in document["choices"] if one["index"] == choice["index"]]
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(one["delta"].get("content", "") for one in parts) == (choice["message"]["content"] or "")
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
    return whole


async def test_answers_are_those_of_the_model(server: tuple[Model, httpx.AsyncClient]) -> None:
    model, client = server
    sampled: dict[str, Any] = {"temperature": 1.0, "seed": 5}
    wanted = await model.chat(CHAT, n=3, max_new_tokens=4, **sampled)
    made = await ask(client, n=3, **sampled)
    assert [one["message"]["content"] for one in made["choices"]] == [one.text for one in wanted]
    assert len({one.text for one in wanted}) > 1
    scored = await model.chat(CHAT, max_new_tokens=4, logprobs=2)
    told = (await ask(client, logprobs=True, top_logprobs=2))["choices"][0]["logprobs"]["content"]
    assert scored.logprobs is not None
    own = [found[token_id] for found, token_id in zip(scored.logprobs, scored.token_ids, strict=True)]
    assert [one["logprob"] for one in told] == pytest.approx(own)
    assert [len(one["top_logprobs"]) for one in told] == [2] * 4


async def test_an_answer_goes_on_to_the_end_of_the_context(server: tuple[Model, httpx.AsyncClient]) -> None:
    _, client = server
    made = (await client.post("/v1/chat/completions", json={"messages": CHAT, "ignore_eos": True})).json()
    assert (made["usage"]["total_tokens"], made["choices"][0]["finish_reason"]) == (96, "length")
    too_long = await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a b " * 60}]})
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_messages_and_options_become_the_prompt_of_the_template(
    server: tuple[Model, httpx.AsyncClient],
) -> None:
    model, client = server
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    said = [{"role": "developer", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    object_call = {**call, "function": {"name": "f", "arguments": {"x": 1}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    begun = [*CHAT, {"role": "assistant", "content": "import"}]
    asked: list[tuple[Any, dict[str, Any], Any, dict[str, Any]]] = [
        (
            said,
            {"reasoning_effort": "low"},
            [{"role": "system", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [object_call]}],
            {"chat_template_kwargs": {"reasoning_effort": "low"}},
        ),
        (CHAT, {"tools": [tool]}, CHAT, {"tools": [tool]}),
        (CHAT, {"tools": [tool], "tool_choice": "none"}, CHAT, {}),
        (
            begun,
            {"continue_final_message": True, "add_generation_prompt": False},
            begun,
            {"continue_final_message": True},
        ),
    ]
    for messages, fields, own, options in asked:
        wanted = await model.chat(own, max_new_tokens=4, **options)
        made = await ask(client, messages, **fields)
        assert made["choices"][0]["message"]["content"] == wanted.text
        assert made["usage"]["prompt_tokens"] == len(wanted.prompt_token_ids)


CALLS = "{% for m in messages %}{{ m.content }}\n{% endfor %}{{ tools | tojson if tools }}{# <tool_call> #}"
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"word": {"enum": ["os", "sys"]}},
            "required": ["word"],
            "additionalProperties": False,
        },
    },
}


async def test_a_forced_call_and_a_forced_format_are_what_the_answer_is() -> None:
    async with serving(settings={"device": "cpu", "context_tokens": 256}, template=CALLS) as it:
        named = {"type": "function", "function": {"name": "look_up"}}
        for choice in ({"tool_choice": "required", "parallel_tool_calls": False}, {"tool_choice": named}):
            [made] = (await ask(it.client, tools=[TOOL], max_tokens=60, **choice))["choices"]
            assert made["finish_reason"] == "tool_calls"
            [call] = made["message"]["tool_calls"]
            assert call["function"]["name"] == "look_up"
            assert json.loads(call["function"]["arguments"])["word"] in ("os", "sys")
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": TOOL["function"]["parameters"]}}
        [made] = (await ask(it.client, response_format=schema, max_tokens=60))["choices"]
        assert json.loads(made["message"]["content"])["word"] in ("os", "sys")
        unknown = {"type": "function", "function": {"name": "other"}}
        refused = {"messages": CHAT, "tools": [TOOL], "tool_choice": unknown}
        answer = await it.client.post("/v1/chat/completions", json=refused)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tool_choice")


async def test_what_is_found_computed_is_told(server: tuple[Model, httpx.AsyncClient]) -> None:
    _, client = server
    for cached in (False, True):
        body = {"messages": CHAT, "max_tokens": 1, "cache_scope": "a"}
        used = (await client.post("/v1/chat/completions", json=body)).json()["usage"]
        assert (used["prompt_tokens_details"]["cached_tokens"] > 0) == cached


async def test_a_part_that_is_no_text_is_refused(server: tuple[Model, httpx.AsyncClient]) -> None:
    _, client = server
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    for stream in (False, True):
        body = {"messages": [{"role": "user", "content": [image]}], "stream": stream}
        answer = await client.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
