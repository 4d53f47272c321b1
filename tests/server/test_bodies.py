"""Bodies of requests: what is read, what is refused by its name, and what is only told of."""

import json
import logging
from typing import Any

import pytest

from pipeline.errors import RequestError
from pipeline.server import bodies
from pipeline.server.arguments import (
    chat_arguments,
    chat_options,
    completion_arguments,
    messages_of,
    naming_fields,
    prompts_of,
    tools_of,
)
from pipeline.server.bodies import ChatBody, CompletionBody, decode
from pipeline.server.errors import ApiError

USER = [{"role": "user", "content": "a"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def completion(**fields: Any) -> CompletionBody:
    return decode(CompletionBody, json.dumps({"prompt": "a", **fields}).encode())


def chat(**fields: Any) -> ChatBody:
    return decode(ChatBody, json.dumps({"messages": USER, **fields}).encode())


@pytest.mark.parametrize(
    ("data", "param", "message"),
    [
        (b"", None, "need a body that is a JSON object"),
        (b"[]", None, "need object, have array"),
        (b'{"prompt": "a", }', None, "need a body that is a JSON object"),
        (b'{"prompt": "\xff"}', None, "need a body that is a JSON object"),
        (b'{"prompt": "\\ud800"}', None, "need a body that is a JSON object"),
        (b'{"x": ' + b"[" * 100_000, None, "need a body that is a JSON object"),
        (json.dumps(dict.fromkeys(map(str, range(1001)))).encode(), None, "at most 1000 fields, have 1001"),
        (b'{"prompt": [' + b"1," * (1 << 20) + b"1, 1]}", None, "need a body of at most 1048576 commas"),
        (b'{"x": [' + b"[]," * (1 << 18) + b"[]]}", None, "and 262144 colons and opening brackets"),
        (b"{}", "prompt", "prompt: need it, have none"),
        (b'{"prompt": null}', "prompt", "prompt: need str | array, have null"),
        (b'{"prompt": [[1.5]]}', "prompt", r"need int, have float - at \$.prompt\[0\]\[0\]"),
        (b'{"prompt": "a", "max_tokens": "5"}', "max_tokens", "max_tokens: need int | null, have str"),
        (b'{"prompt": "a", "n": true}', "n", "n: need int | null, have bool"),
        (b'{"prompt": "a", "stop": [5]}', "stop", r"need str, have int - at \$.stop\[0\]"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature", "temperature: Number out of range"),
        (b'{"prompt": "a", "logit_bias": {"x": 1}}', "logit_bias", "logit_bias: need int, have str"),
        (b'{"prompt": "a", "stream_options": {"include_usage": 1}}', "stream_options", "need bool | null, have int"),
        (b'{"prompt": "a", "suffix": "b"}', "suffix", "suffix: is not supported; leave it out, or give ''"),
        (b'{"prompt": "a", "guided_json": {}}', "guided_json", "guided_json: is not supported; leave it out$"),
    ],
)
def test_a_body_that_cannot_be_read_says_which_field_and_why(data: bytes, param: str | None, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        decode(CompletionBody, data)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a"] * 1025}, "prompt"),
    ],
)
def test_completions_refuse_what_they_cannot_honour(fields: dict[str, Any], param: str) -> None:
    body = completion(**fields)
    with pytest.raises(ApiError, match=rf"^{param}: ") as caught:
        prompts_of(body), completion_arguments(body)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"audio": {}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{}]}, "functions"),
        ({"store": True}, "store"),
        ({"verbosity": "high"}, "verbosity"),
        ({"chat_template": "x"}, "chat_template"),
        ({"add_special_tokens": True}, "add_special_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools"),
    ],
)
def test_chats_refuse_what_they_cannot_honour(fields: dict[str, Any], param: str) -> None:
    def read() -> None:
        body = chat(**fields)
        chat_arguments(body), chat_options(body), tools_of(body)

    with pytest.raises(ApiError, match=rf"^{param}: ") as caught:
        read()
    assert (caught.value.status, caught.value.param) == (400, param)


def test_fields_become_arguments_of_the_model() -> None:
    assert completion_arguments(completion()) == {"max_new_tokens": 16, "logprobs": None}
    echoed = completion(echo=True, max_tokens=0, logprobs=2, best_of=3, n=3, suffix="", logit_bias={"5": -1})
    wanted = {"max_new_tokens": 0, "logprobs": 2, "prompt_logprobs": 2, "n": 3, "logit_bias": {5: -1.0}}
    assert completion_arguments(echoed) == wanted
    kinds: list[Any] = ["a", ["a", "b"], [1, 2], [[1, 2], [3]]]
    assert [prompts_of(completion(prompt=one)) for one in kinds] == [["a"], ["a", "b"], [[1, 2]], [[1, 2], [3]]]
    assert chat_arguments(chat()) == {}
    body = chat(max_tokens=3, max_completion_tokens=3, logprobs=True, modalities=["text"], seed=2**70, min_tokens=1)
    assert chat_arguments(body) == {"max_new_tokens": 3, "logprobs": 0, "seed": 2**70, "min_tokens": 1}
    assert chat_arguments(chat(logprobs=True, top_logprobs=4))["logprobs"] == 4
    variables = chat_options(chat(reasoning_effort="none", chat_template_kwargs={"x": 1}))["chat_template_kwargs"]
    assert variables == {"reasoning_effort": "none", "enable_thinking": False, "x": 1}
    assert [tools_of(chat(tools=[TOOL], tool_choice=choice)) for choice in (None, "auto", "none")] == [[TOOL]] * 2 + [
        ()
    ]


def test_messages_are_those_that_templates_read() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}
    broken = {"id": "b", "type": "function", "function": {"name": "f", "arguments": '{"x'}}
    said = [{"role": "developer", "content": "a"}, {"role": "assistant", "tool_calls": [call, broken]}]
    body = chat(messages=said)
    system, assistant = messages_of(body, knows_developers=False)
    assert (system["role"], messages_of(body, knows_developers=True)[0]["role"]) == ("system", "developer")
    arguments = [one["function"]["arguments"] for one in assistant["tool_calls"]]
    assert arguments == [{"x": [1]}, '{"x'], "what is no JSON object stays a text"
    assert body.messages == said, "the body is left as it came"


def test_errors_of_the_model_name_the_fields_of_the_request() -> None:
    for body, name in ((completion(), "max_tokens"), (chat(max_completion_tokens=3), "max_completion_tokens")):
        with pytest.raises(RequestError, match=rf"^{name}: need a number"), naming_fields(body):
            raise RequestError("max_new_tokens: need a number")
        with pytest.raises(ApiError, match=f"need room for .*, or lower {name} to 3") as caught, naming_fields(body):
            raise RequestError(
                "need room for 5 prompt and 9 new tokens, have 8: shorten it, or lower max_new_tokens to 3"
            )
        assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_unknown_fields_are_told_of_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_told", set())
    with caplog.at_level(logging.WARNING, "penstock"):
        for _ in range(2):
            assert completion(user="me", metadata={"a": "b"}, novel={"secret": 1}, suffix=None).prompt == "a"
        completion(**{f"novel_{number}": 1 for number in range(200)})
    assert len(caplog.records) == bodies.MOST_TOLD, "clients may invent any number"
    assert "requests have the field 'novel'" in caplog.messages[0]
    assert "secret" not in caplog.text
