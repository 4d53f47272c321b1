"""From chunks of the model to the objects that clients read, in one piece and in many."""

import json
import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from pipeline import Chunk
from pipeline.server.answers import GrowingAnswer, document, documents
from pipeline.server.chat_answer import ChatAnswer
from pipeline.server.text_answer import Echo, TextAnswer
from pipeline.server.token_names import TokenNames

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


async def test_a_prompt_is_echoed_and_alone_where_nothing_more_is_wanted() -> None:
    echoes = [Echo("Hello", [9, 1])]
    for only_echo, text, tokens in ((False, "Hello!", 1), (True, "Hello", 0)):
        answer = TextAnswer("small", 1, names=None, echoes=echoes, only_echo=only_echo)
        made = await whole(answer, 1, [(0, chunk(4, "!", "length"))])
        assert (made["choices"][0]["text"], made["usage"]["completion_tokens"]) == (text, tokens)
        assert made["choices"][0]["finish_reason"] == "length"


async def test_a_chat_begins_with_its_role_and_ends_with_its_reason() -> None:
    chunks = [(0, one) for one in HELLO]
    told = [one["choices"][0] for one in await frames(ChatAnswer("small", [None]), chunks)]
    assert [one["delta"] for one in told] == [
        {"role": "assistant", "content": ""},
        *({"content": text} for text in ("Hello", " w", "örld")),
        {},
    ]
    assert [one["finish_reason"] for one in told] == [None] * 4 + ["stop"]
    made = (await whole(ChatAnswer("small", [None]), 1, chunks))["choices"][0]
    assert made["message"] == {"role": "assistant", "content": "Hello wörld", "refusal": None}
    assert (made["finish_reason"], made["logprobs"]) == ("stop", None)


async def test_each_token_of_a_chat_has_a_log_probability_even_without_text() -> None:
    def answer() -> ChatAnswer:
        return ChatAnswer("small", [None], names=NAMES, top_logprobs=2)

    chunks = [(0, one) for one in [*HELLO[:1], chunk(2, ""), chunk(3, "wörld"), HELLO[3]]]
    told = (await whole(answer(), 1, chunks))["choices"][0]["logprobs"]
    assert [one["token"] for one in told["content"]] == ["Hello", " w\\xc3", "\\xb6rld", "<|end|>"]
    assert told["content"][1]["bytes"] == [32, 119, 0xC3]
    assert [one["logprob"] for one in told["content"][2]["top_logprobs"]] == [-0.25, -0.5], "the likeliest first"
    streamed = [one["choices"][0]["logprobs"] for one in await frames(answer(), chunks)]
    assert [named for one in streamed if one for named in one["content"]] == told["content"]
