"""Answers keep to a JSON schema, a regular expression or a grammar, and end where it ends."""

import asyncio
import json
import re
import sys
import time
from random import Random
from typing import Any

import pytest

from pipeline import Model, RequestError
from pipeline.generation import grammar
from pipeline.generation.grammar import Grammars, GrammarState
from pipeline.generation.response_format import GrammarSource, read_response_format
from pipeline.system.hub_cache import BUNDLED
from pipeline.text.chat import Chat, ChatOptions
from pipeline.text.chat_templates import NO_TEMPLATES
from pipeline.text.tokenizer import Tokenizer, load_tokenizer
from pipeline.text.tool_calls.deltas import ArgumentsDelta, CallDelta
from pipeline.text.tool_calls.formats import FORMATS, ToolFormat

COMPACT = {" ": -100.0, "\n": -100.0}
"""The model likes to indent, which takes tokens."""
NEVER = {"type": "regex", "regex": "[0-9]{500}"}
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Bern"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
CODE = {"type": "regex", "regex": "[0-9]{3}-[xyz]"}


def schema(of: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": of}}


def random_schema(random: Random, depth: int = 2) -> dict[str, Any]:
    kinds = ["integer", "boolean", "null", "string", "enum", "anyOf"] + ["array", "object"] * bool(depth)
    match kind := random.choice(kinds):
        case "integer":
            low = random.randrange(-50, 50)
            return {"type": kind, "minimum": low, "maximum": low + random.randrange(200)}
        case "string":
            return {"type": kind, "minLength": 1, "maxLength": random.randrange(1, 6)}
        case "enum":
            return {kind: random.sample(["a", "long word", 7, None, {"x": [1]}, False], 3)}
        case "anyOf":
            return {kind: [random_schema(random, 0), {"type": "boolean"}]}
        case "array":
            return {"type": kind, "items": random_schema(random, depth - 1), "maxItems": 2}
        case "object":
            inner = {name: random_schema(random, depth - 1) for name in random.sample(["a", "b c", "é"], 2)}
            return {
                "type": kind,
                "properties": inner,
                "required": ["a"] * ("a" in inner),
                "additionalProperties": False,
            }
    return {"type": kind}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is one of a random schema."""
    if "enum" in schema:
        return any(value == one and type(value) is type(one) for one in schema["enum"])
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    match schema["type"]:
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and 1 <= len(value) <= schema["maxLength"]
        case "array":
            return isinstance(value, list) and len(value) <= 2 and all(fits(one, schema["items"]) for one in value)
        case "object":
            known = isinstance(value, dict) and {*schema["required"]} <= value.keys() <= schema["properties"].keys()
            return known and all(fits(one, schema["properties"][name]) for name, one in value.items())
    return value is None if schema["type"] == "null" else isinstance(value, bool)


async def test_answers_at_random_fit_random_schemas_the_same_on_all_devices() -> None:
    """Many in one pass, each with its own schema; also where a pass fails and is computed anew."""
    random = Random(21)
    schemas = [random_schema(random) for _ in range(12)]
    texts = []
    for device in ("cpu", "cpu-copy"):
        async with Model.open(device=device) as model:
            bias = {model.tokenizer.encode(text)[-1]: number for text, number in COMPACT.items()}
            arguments: Any = {"temperature": 1.0, "max_new_tokens": 40, "logit_bias": bias}
            if device == "cpu-copy":
                failed = _failing_once(model)
            asked = [schema(one) for one in schemas]
            outputs = await asyncio.gather(
                *(model.generate("x = ", seed=seed, response_format=one, **arguments) for seed, one in enumerate(asked))
            )
        texts.append([output.text for output in outputs])
    assert failed, "a pass failed"
    assert texts[0] == texts[1]
    ended = [output.finish_reason for output in outputs]
    assert ended.count("stop") >= 9
    for text, reason, one in zip(texts[0], ended, schemas, strict=True):
        assert reason == "length" or fits(json.loads(text), one), (text, one)


def _failing_once(model: Model) -> list[int]:
    """Let the computation of a later pass fail."""
    passes: list[int] = []
    step = model.runtime.program.step

    def failing(pass_: Any, message: Any) -> Any:
        if model.runtime.program.passes == 5 and not passes:
            passes.append(5)
            raise ValueError("a kernel failed")
        return step(pass_, message)

    model.runtime.program.step = failing  # type: ignore[method-assign]
    return passes


async def test_an_answer_ends_where_nothing_may_follow_and_a_sample_keeps_to_it_alone() -> None:
    async with Model.open(device="cpu") as model:
        arguments: Any = {"temperature": 1.0, "response_format": CODE, "max_new_tokens": 20, "ignore_eos": True}
        plain = await model.generate("x = ", max_new_tokens=4)
        three, free = await asyncio.gather(
            model.generate("x = ", n=3, seed=5, **arguments), model.generate("x = ", max_new_tokens=4)
        )
        assert free == plain
        assert len({output.text for output in three}) > 1
        for output in three:
            assert re.fullmatch(CODE["regex"], output.text)
            assert output.finish_reason == "stop"
        assert (await model.generate("x = ", stop=["-"], **arguments)).text.isdigit()
        answer = await model.generate("x = ", response_format={"type": "text"}, max_new_tokens=4)
        assert answer.text == plain.text
        running = asyncio.ensure_future(model.generate("x = ", response_format=NEVER, max_new_tokens=500))
        chunks = model.stream("x = ", response_format=NEVER, max_new_tokens=500)
        assert (await anext(chunks)).text.isdigit()
        await chunks.aclose()
        running.cancel()
        await model.generate("x = ", max_new_tokens=1)
        assert model.runtime.admission.batcher.running == 0
        object_ = await model.generate("x = ", response_format={"type": "json_object"}, temperature=1.0, seed=3)
        assert object_.finish_reason == "length" or isinstance(json.loads(object_.text), dict)


async def test_what_cannot_be_kept_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Model.open(device="cpu") as model:
        for wrong, says in (
            ("json", "response_format: need an object with a type; have 'json'"),
            (
                {"type": "xml"},
                "response_format.type: need text, json_object, json_schema, regex or grammar; have 'xml'",
            ),
            ({"type": "json_schema"}, r'response_format.json_schema: need an object with a "schema"; have None'),
            (schema({"enum": [float("nan")]}), "response_format.json_schema.schema: need a JSON schema"),
            (schema({"enum": ["a" * 70_000]}), "need at most 65536 characters; have one of 70014 characters"),
            (schema({"allOf": [{"pattern": "a"}] * 9}), "need at most 8 of pattern and format beside allOf; have 9"),
            ({"type": "regex", "regex": ""}, "response_format.regex: need a text of 1 to 65536 characters; have ''"),
        ):
            with pytest.raises(RequestError, match=re.escape(says).replace(r"\ ", " ")):
                model.stream("x", response_format=wrong)
        for wrong, says in (
            (schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
            (schema({"x-guidance": {"lenient": True}, "not": {}}), 'Unimplemented keys: ["not"]'),
            (schema({"type": "string", "format": "weird"}), "Unknown format: weird"),
            (schema({"$ref": "http://127.0.0.1/x"}), "retrieving it failed"),
            ({"type": "regex", "regex": "(?=a)"}, "regex parse error"),
            ({"type": "grammar", "grammar": "start: x"}, 'unknown name: "x"'),
        ):
            for _ in range(2):
                with pytest.raises(RequestError, match=re.escape("response_format: ") + ".*" + re.escape(says)):
                    await model.generate("x", response_format=wrong)
        with pytest.raises(RequestError, match="response_format: cannot be kept where forced_eos_token_id says"):
            model.stream("x", response_format=CODE, forced_eos_token_id=1)
        monkeypatch.setitem(sys.modules, "llguidance", None)
        with pytest.raises(RequestError, match=r'not installed: pip install "penstock-llm\[grammar\]"'):
            model.stream("x", response_format=CODE)
        assert model.runtime.program.passes == 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(BUNDLED, 4096)


async def test_what_takes_too_long_to_compile_delays_nobody(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "LONGEST_COMPILING_SECONDS", 0.2)
    monkeypatch.setattr(Grammars, "_compile", lambda self, _, source, thought: time.sleep(0.5))
    grammars, source = Grammars(4096, [4095]), GrammarSource("regex", "a")
    waits = [grammars.states(tokenizer, source, None, 1) for _ in range(2)]
    began = time.monotonic()
    turn = asyncio.ensure_future(asyncio.sleep(0.01))
    ended = await asyncio.gather(*waits, return_exceptions=True)
    assert turn.done()
    assert time.monotonic() - began < 0.45
    for error in ended:
        assert isinstance(error, RequestError)
        assert "compiling the grammar takes more than 0.2 seconds; ask for less" in str(error)
    assert ended[0] is not ended[1]


async def test_behind_reasoning_that_the_prompt_has_opened_the_grammar_begins(tokenizer: Tokenizer) -> None:
    """The model may be without an end token, too."""
    for eos_ids in ([4095], []):
        [state] = await Grammars(4096, eos_ids).states(tokenizer, GrammarSource("regex", "[0-9]{2}"), "</think>", 1)
        for token_id in tokenizer.chat_ids("a < b </thin\n</think>\n\n42"):
            assert not state.complete
            assert not state.ruled_out()[token_id]
            state.took(token_id)
        assert state.complete
    for template, mark in {"{{ '<think>' }}\n": "</think>", "<think></think>": None, "Hi": None}.items():
        chat = Chat([{"role": "user", "content": "Hi"}], ChatOptions(chat_template=template), NO_TEMPLATES)
        assert chat.open_thought(tokenizer, chat.ids(tokenizer)) == mark


TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "clock"}},
]
FORCED = ("hermes", "llama3", "mistral", "mistral-args", "granite", "glm4", "qwen3-coder")


async def test_any_answer_under_a_forced_call_is_one_call_of_the_tool(tokenizer: Tokenizer) -> None:
    """Of any tool, or the one that is named; tokens are drawn evenly of those that are left."""
    grammars, random = Grammars(4096, [4095]), Random(21)
    named = {"type": "function", "function": {"name": "weather"}}
    for name in FORCED:
        form = ToolFormat(name=name, calls=FORMATS[name], reasoning=None)
        for choice in ("required", named):
            source = read_response_format(form.forced(TOOLS, choice, parallel_tool_calls=False))
            assert source is not None
            for state in await grammars.states(tokenizer, source, None, 3):
                text = walked(tokenizer, state, random)
                parser = form.parser(TOOLS)
                begun, *rest = [*parser.push(text), *parser.flush()]
                assert isinstance(begun, CallDelta), text
                assert begun.name == "weather" or choice == "required"
                arguments = json.loads("".join(one.text for one in rest if isinstance(one, ArgumentsDelta)))
                assert fits(arguments, WEATHER) if begun.name == "weather" else arguments == {}
                assert all(isinstance(one, ArgumentsDelta) for one in rest), text


def walked(tokenizer: Tokenizer, state: GrammarState, random: Random) -> str:
    text = b""
    while not state.complete:
        allowed = [token_id for token_id, is_out in enumerate(state.ruled_out()) if not is_out]
        token_id = random.choice(allowed)
        state.took(token_id)
        text += tokenizer.token_bytes(token_id)
    return text.removesuffix(b"<|end_of_text|>").decode()


async def test_forced_calls_may_be_several_and_their_marks_are_special_tokens(tokenizer: Tokenizer) -> None:
    form = ToolFormat(name="hermes", calls=FORMATS["hermes"], reasoning=None)
    source = read_response_format(form.forced(TOOLS, "required"))
    [state] = await Grammars(4096, [4095]).states(tokenizer, source, None, 1)
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    for token_id in tokenizer.chat_ids(f"{call}\n{call}").tolist():
        assert not state.ruled_out()[token_id]
        state.took(token_id)
    assert not state.ruled_out()[4095]
    assert not state.complete
    say = {"name": "say", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}
    form = ToolFormat(name="qwen3-coder", calls=FORMATS["qwen3-coder"], reasoning=None)
    source = read_response_format(form.forced([say], "required", parallel_tool_calls=False))
    [state] = await Grammars(4096, [4095]).states(tokenizer, source, None, 1)
    call = "<tool_call>\n<function=say>\n<parameter=text>\na </param\n</parameter>\n</function>\n</tool_call>"
    for token_id in tokenizer.chat_ids(call).tolist():
        assert not state.complete
        assert not state.ruled_out()[token_id]
        state.took(token_id)
    assert state.complete
    begin = read_response_format({"type": "grammar", "grammar": "start: mark", "marks": {"mark": "<|begin_of_text|>"}})
    [state] = await Grammars(4096, [4095]).states(tokenizer, begin, None, 1)
    assert state.ruled_out().tolist().index(0) == 4094
    for tools, choice, name, says in (
        ((), "required", "hermes", "tool_choice: needs tools to choose from; have none"),
        (
            TOOLS,
            "required",
            "gemma4",
            "need one of the formats hermes, .* to force a call; have a chat .* gemma4",
        ),
        (
            TOOLS,
            {"type": "function", "function": {"name": "x"}},
            "hermes",
            r"one of the tools \(weather, clock\); have",
        ),
        (
            [{"name": "a", "parameters": {"properties": {"b": 1}}}],
            "required",
            "qwen3-coder",
            "of 'a' are no JSON schema",
        ),
        (
            [{"name": "a", "parameters": {"not": {}}}],
            "required",
            "qwen3-coder",
            "tool_choice: a: not cannot be kept in",
        ),
        (TOOLS, "must", "hermes", "tool_choice: need 'none', 'auto', 'required' or an object that names a function"),
    ):
        with pytest.raises(RequestError, match=says):
            ToolFormat(name=name, calls=FORMATS[name], reasoning=None).forced(tools, choice)
