"""/v1/completions gives what the model gives: one prompt or many, samples, log-probabilities, echoes."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from support.servers import frames, serving

from pipeline import Model

SMILE = "😀"


@pytest.fixture
async def server() -> AsyncIterator[tuple[Model, httpx.AsyncClient]]:
    async with serving(names=("small",)) as it:
        yield it.model, it.client


async def ask(client: httpx.AsyncClient, prompt: Any, **fields: Any) -> dict[str, Any]:
    """The answer, which is the same when it is streamed."""
    body = {"model": "small", "prompt": prompt, "max_tokens": 6, **fields}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    whole: dict[str, Any] = answer.json()
    streamed = await client.post(
        "/v1/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    *documents, last = frames(streamed.text)
    assert last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    for choice in whole["choices"]:
        parts = [one for document in documents for one in document["choices"] if one["index"] == choice["index"]]
        assert "".join(one["text"] for one in parts) == choice["text"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        for name in ("tokens", "text_offset") if choice["logprobs"] else ():
            assert [value for one in parts for value in one["logprobs"][name]] == choice["logprobs"][name]
    return whole


async def test_prompts_and_samples_are_those_of_the_model(server: tuple[Model, httpx.AsyncClient]) -> None:
    model, client = server
    sampled: dict[str, Any] = {"temperature": 1.0, "seed": 5, "top_k": 50, "frequency_penalty": 0.5}
    for prompts in (["import os\n", "def f("], [model.tokenizer.encode(text) for text in ("a", "class A:")]):
        wanted = [await model.generate(prompt, n=2, max_tokens=6, **sampled) for prompt in prompts]
        made = await ask(client, prompts, n=2, **sampled)
        assert [one["text"] for one in made["choices"]] == [one.text for samples in wanted for one in samples]
        assert [one["index"] for one in made["choices"]] == [0, 1, 2, 3]
        assert made["usage"]["prompt_tokens"] == sum(len(samples[0].prompt_token_ids) for samples in wanted)
        assert made["usage"]["completion_tokens"] == 24
    body = {"prompt": "import os\n"}
    plain = await ask(client, "a", add_special_tokens=False)
    bare = await model.generate(model.tokenizer.encode("a", add_special_tokens=False), max_tokens=6)
    assert (plain["choices"][0]["text"], plain["usage"]["prompt_tokens"]) == (bare.text, 1)
    default = (await client.post("/v1/completions", json=body)).json()
    assert default["usage"]["completion_tokens"] == 16, "as OpenAI documents it"
    assert default["model"] == "small"


async def test_log_probabilities_are_those_of_the_model(server: tuple[Model, httpx.AsyncClient]) -> None:
    model, client = server
    wanted = await model.generate("import os\n", logprobs=3, max_tokens=6)
    told = (await ask(client, "import os\n", logprobs=3))["choices"][0]["logprobs"]
    assert wanted.logprobs is not None
    own = [found[token_id] for found, token_id in zip(wanted.logprobs, wanted.token_ids, strict=True)]
    assert sum(told["token_logprobs"]) == pytest.approx(sum(own))
    assert "".join(told["tokens"]) == wanted.text
    assert [max(top.values()) for top in told["top_logprobs"]] == pytest.approx(
        [max(f.values()) for f in wanted.logprobs]
    )


async def test_a_character_that_the_prompt_begins_is_completed_and_may_stop_the_text(
    server: tuple[Model, httpx.AsyncClient],
) -> None:
    model, client = server
    *begun, last = model.tokenizer.encode(f"x{SMILE}")
    forced = {"logit_bias": {last: 100}, "max_tokens": 1, "logprobs": 0}
    [choice] = (await ask(client, begun, **forced))["choices"]
    assert (choice["text"], choice["finish_reason"]) == (SMILE, "length")
    assert choice["logprobs"]["tokens"] == ["\\x80"]
    [stopped] = (await ask(client, begun, stop=[SMILE], **forced))["choices"]
    assert (stopped["text"], stopped["finish_reason"]) == ("", "stop")
    text = (await model.generate("import os\n", max_tokens=6)).text
    [cut] = (await ask(client, "import os\n", stop=text[3:9]))["choices"]
    assert (cut["text"], cut["finish_reason"]) == (text[:3], "stop"), "a stop string spans tokens"


async def test_a_prompt_is_echoed_whatever_it_is(server: tuple[Model, httpx.AsyncClient]) -> None:
    model, client = server
    answer = await model.generate("import os\n", max_tokens=6)
    for prompt in ("import os\n", [*answer.prompt_token_ids]):
        assert (await ask(client, prompt, echo=True))["choices"][0]["text"] == "import os\n" + answer.text
        scored = await model.generate(prompt, max_tokens=1, prompt_logprobs=1, logprobs=1)
        told = (await ask(client, prompt, echo=True, max_tokens=1, logprobs=1))["choices"][0]["logprobs"]
        assert scored.prompt_logprobs is not None
        wanted = [
            None if found is None else found[token_id]
            for found, token_id in zip(scored.prompt_logprobs, scored.prompt_token_ids, strict=True)
        ]
        assert told["token_logprobs"][:-1] == pytest.approx(wanted), "those of the prompt, then of one new token"
        assert len(told["tokens"]) == len(wanted) + 1
        nothing = await ask(client, prompt, echo=True, max_tokens=0)
        assert (nothing["choices"][0]["text"], nothing["usage"]["completion_tokens"]) == ("import os\n", 0)


async def test_what_is_refused_has_a_status_a_field_and_a_code(server: tuple[Model, httpx.AsyncClient]) -> None:
    model, client = server
    refused: list[tuple[dict[str, Any], int, str | None, str | None]] = [
        ({"model": "other"}, 404, "model", "model_not_found"),
        ({"max_tokens": 10**6}, 400, "max_tokens", "context_length_exceeded"),
        ({"prompt": "a " * 3000, "stream": True}, 400, "max_tokens", "context_length_exceeded"),
        ({"temperature": -1}, 400, "temperature", None),
        ({"prompt": [["a"]]}, 400, "prompt", None),
        ({"prompt": [99_999]}, 400, "prompt", None),
        ({"prompt": [99_999], "echo": True}, 400, "prompt", None),
        ({"prompt": ["a", ""], "n": 99}, 400, "n", None),
        ({"prompt": ["a"] * 1000, "n": 16}, 400, "prompt", None),
        ({"suffix": "x"}, 400, "suffix", "unsupported_value"),
        ({"logit_bias": {"99999": 1}}, 400, "logit_bias", None),
    ]
    for fields, status, param, code in refused:
        answer = await client.post("/v1/completions", json={"prompt": "a", **fields})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (status, param, code), (fields, error)
    assert model.statistics().kv_blocks.used == 0
