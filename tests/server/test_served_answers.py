"""From chunks of the model to the objects that clients read, in one piece and in many."""

import json
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pipeline import Chunk
from pipeline.errors import RequestError
from pipeline.server.answers import GrowingAnswer, document, documents
from pipeline.server.chat_answer import ChatAnswer
from pipeline.server.text_answer import Echo, TextAnswer
from pipeline.server.token_names import TokenNames
from pipeline.text.tool_calls.formats import find_format

PIECES = {1: b"Hello", 2: b" w\xc3", 3: b"\xb6rld", 4: b"!", 9: b"<|end|>"}


class Tokenizer:
    special_ids = frozenset({9})

    def token_bytes(self, token_id: int) -> bytes:
        return PIECES.get(token_id, b"")


class Named:
    tokenizer = Tokenizer()


NAMES = TokenNames(Named())  # type: ignore[arg-type]


def chunk(token_id: int, text: str, reason: str | None = None, index: int = 0, **other: int) -> Chunk:
    logprobs = {token_id: -0.5, 1: -0.25 if token_id != 1 else -0.5, 77: -math.inf}
    return Chunk(text, (token_id,), reason, logprobs, index, prompt_tokens=7, **other)


HELLO = [chunk(1, "Hello", cached_tokens=5), chunk(2, " w"), chunk(3, "örld"), chunk(9, "", "stop")]


async def stream(chunks: Sequence[tuple[int, Chunk]]) -> AsyncGenerator[tuple[int, Chunk], None]:
    for numbered in chunks:
        yield numbered


async def frames(answer: GrowingAnswer[Any], chunks: Sequence[tuple[int, Chunk]]) -> list[dict[str, Any]]:
    return [json.loads(data) async for data in documents(answer, stream(chunks))]


async def whole(answer: GrowingAnswer[Any], count: int, chunks: Sequence[tuple[int, Chunk]]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(await document(answer, count, stream(chunks)))
    return made


def texts() -> TextAnswer:
    return TextAnswer("small", 1, names=NAMES)


async def test_tokens_of_a_completion_have_names_places_and_probabilities() -> None:
    made = await whole(texts(), 1, [(0, one) for one in HELLO])
    [choice] = made["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hello wörld", "stop")
    told = choice["logprobs"]
    assert told["tokens"] == ["Hello", " w\\xc3", "\\xb6rld", "<|end|>"], "pieces of a character are written as bytes"
    assert told["text_offset"] == [0, 5, 7, 11], "a token that goes on with a character stands where that stands"
    assert told["token_logprobs"] == [-0.5] * 4
    assert told["top_logprobs"][1] == {"Hello": -0.25, " w\\xc3": -0.5, "": -9999.0}, "JSON has no infinity"
    assert made["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 5},
    }
    streamed = [one["choices"][0] for one in await frames(texts(), [(0, one) for one in HELLO])]
    assert "".join(one["text"] for one in streamed) == choice["text"]
    assert {name: [value for one in streamed for value in one["logprobs"][name]] for name in told} == told


async def test_prompts_and_samples_have_an_index_each_and_a_prompt_counts_once() -> None:
    ended = [(prompt, chunk(1, f"{prompt}{index}", "length", index)) for index in (1, 0) for prompt in (1, 0)]
    answer = TextAnswer("small", 2, names=None, includes_usage=True)
    told = await frames(answer, ended)
    assert {one["choices"][0]["index"]: one["choices"][0]["text"] for one in told[:-1]} == dict(
        enumerate(["00", "01", "10", "11"])
    )
    assert [one["usage"] for one in told[:-1]] == [None] * 4
    assert told[-1]["choices"] == []
    assert (told[-1]["usage"]["prompt_tokens"], told[-1]["usage"]["completion_tokens"]) == (14, 4)
    assert len({(one["id"], one["created"], one["model"], one["object"]) for one in told}) == 1


async def test_a_chunk_without_text_is_not_sent_unless_it_tells_something() -> None:
    silent = [(0, chunk(2, "")), (0, chunk(3, "wö")), (0, chunk(9, "", "stop"))]
    assert len(await frames(TextAnswer("small", 1, names=None), silent)) == 2
    assert len(await frames(texts(), silent)) == 3
    assert "usage" not in (await frames(texts(), silent))[-1]


@pytest.mark.parametrize("at_once", [1, 1000])
async def test_a_prompt_is_echoed_and_alone_where_nothing_more_is_wanted(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.server.answers.MOST_AT_ONCE", at_once)
    scores = (None, {4: -1.0, 1: -2.0})
    scored = replace(chunk(4, "!", "length"), prompt_logprobs=scores)
    alone = Chunk("", (), "length", prompt_logprobs=scores)
    for ended, text, tokens in ((scored, "Hello!", 1), (alone, "Hello", 0)):
        answer = TextAnswer("small", 1, names=NAMES, echoes=[Echo("Hello", [9, 1])])
        made = await whole(answer, 1, [(0, ended)])
        [choice] = made["choices"]
        assert (choice["text"], made["usage"]["completion_tokens"], choice["finish_reason"]) == (text, tokens, "length")
        told = choice["logprobs"]
        assert told["tokens"] == ["<|end|>", "Hello", "!"][: 2 + tokens]
        assert told["token_logprobs"] == [None, -2.0, -0.5][: 2 + tokens]
        assert told["top_logprobs"][:2] == [None, {"!": -1.0, "Hello": -2.0}]
        assert told["text_offset"] == [0, 0, 5][: 2 + tokens]


async def test_a_chat_begins_with_its_role_and_ends_with_its_reason() -> None:
    chunks = [(0, one) for one in HELLO]
    told = [one["choices"][0] for one in await frames(ChatAnswer("small"), chunks)]
    assert [one["delta"] for one in told] == [
        {"role": "assistant", "content": ""},
        *({"content": text} for text in ("Hello", " w", "örld")),
        {},
    ]
    assert [one["finish_reason"] for one in told] == [None] * 4 + ["stop"]
    made = (await whole(ChatAnswer("small"), 1, chunks))["choices"][0]
    assert made["message"] == {"role": "assistant", "content": "Hello wörld", "refusal": None}
    assert (made["finish_reason"], made["logprobs"]) == ("stop", None)


async def test_each_token_of_a_chat_has_a_log_probability_even_without_text() -> None:
    def answer() -> ChatAnswer:
        return ChatAnswer("small", names=NAMES, top_logprobs=2)

    chunks = [(0, one) for one in [*HELLO[:1], chunk(2, ""), chunk(3, "wörld"), HELLO[3]]]
    told = (await whole(answer(), 1, chunks))["choices"][0]["logprobs"]
    assert [one["token"] for one in told["content"]] == ["Hello", " w\\xc3", "\\xb6rld", "<|end|>"]
    assert told["content"][1]["bytes"] == [32, 119, 0xC3]
    assert [one["logprob"] for one in told["content"][2]["top_logprobs"]] == [-0.25, -0.5], "the likeliest first"
    streamed = [one["choices"][0]["logprobs"] for one in await frames(answer(), chunks)]
    assert [named for one in streamed if one for named in one["content"]] == told["content"]


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALLS = find_format("<think> <tool_call>")
WRITTEN = (
    'it depends</think>\n\nWell.\n<tool_call>\n{"name": "f", "arguments": {"x": [1, 2]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "f", "arguments": {"y": "ö"}}\n</tool_call>'
)


async def called(letters: int, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What becomes of an answer that comes by so many letters, as one object and as the choices of its chunks."""
    pieces = [WRITTEN[at : at + letters] for at in range(0, len(WRITTEN), letters)]
    chunks = [(0, chunk(4, piece)) for piece in pieces] + [(0, chunk(9, "", "stop"))]

    def answer() -> ChatAnswer:
        made = ChatAnswer("small", tool_format=CALLS, tools=TOOLS, **options)
        assert made.reads_prompt
        made.prompt = "<think>\n"
        return made

    made = (await whole(answer(), 1, chunks))["choices"][0]
    return made, [one["choices"][0] for one in await frames(answer(), chunks)]


@pytest.mark.parametrize("letters", [1, 7, 1000])
async def test_reasoning_and_calls_are_told_apart_from_text_however_they_come(letters: int) -> None:
    made, told = await called(letters)
    message = made["message"]
    assert (message["reasoning_content"], message["content"].strip()) == ("it depends", "Well.")
    functions = [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in message["tool_calls"]]
    assert functions == [("f", {"x": [1, 2]}), ("f", {"y": "ö"})]
    assert {one["type"] for one in message["tool_calls"]} == {"function"}
    deltas = [one["delta"] for one in told]
    for name in ("reasoning_content", "content"):
        assert "".join(delta.get(name, "") for delta in deltas) == message[name]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    for index, call in enumerate(message["tool_calls"]):
        first, *others = [one for one in calls if one["index"] == index]
        assert (first["type"], first["function"]["name"], first["function"]["arguments"]) == ("function", "f", "")
        assert "".join(one["function"]["arguments"] for one in others) == call["function"]["arguments"]
        assert all(one.keys() == {"index", "function"} and one["function"].keys() == {"arguments"} for one in others)
    assert [one["finish_reason"] for one in told] == [None] * (len(told) - 1) + ["tool_calls"]
    assert made["finish_reason"] == "tool_calls"


async def test_what_only_began_like_a_call_is_text_in_the_end() -> None:
    answer = ChatAnswer("small", tool_format=find_format("<tool_call>"), tools=TOOLS)
    made = await whole(answer, 1, [(0, chunk(4, "a <tool")), (0, chunk(4, "_", "length"))])
    assert (made["choices"][0]["message"]["content"], made["choices"][0]["finish_reason"]) == ("a <tool_", "length")


@pytest.mark.parametrize("letters", [1, 1000])
async def test_an_answer_of_one_call_ends_where_the_second_begins(letters: int) -> None:
    made, told = await called(letters, one_call=True)
    assert [json.loads(one["function"]["arguments"]) for one in made["message"]["tool_calls"]] == [{"x": [1, 2]}]
    assert (made["finish_reason"], told[-1]["finish_reason"]) == ("tool_calls", "tool_calls")
    assert {call["index"] for one in told for call in one["delta"].get("tool_calls", ())} == {0}


async def test_choices_are_numbered_only_when_a_model_has_taken_their_number() -> None:
    async def refused() -> AsyncGenerator[tuple[int, Chunk], None]:
        raise RequestError("n: need a whole number from 1 to 16")
        yield

    unknown: Any = "so many that they fill the memory"
    with pytest.raises(RequestError, match="n: need"):
        await document(texts(), unknown, refused())
