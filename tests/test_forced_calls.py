"""Under a grammar that the format of a model makes, any answer is a call of a tool."""

import json
from random import Random

import pytest
from support.json_schemas import allows, fits

from pipeline import RequestError
from pipeline.generation.grammar import Grammars, GrammarState
from pipeline.generation.response_format import read_response_format
from pipeline.system.hub_cache import BUNDLED
from pipeline.text.tokenizer import Tokenizer, load_tokenizer
from pipeline.text.tool_calls.deltas import ArgumentsDelta, CallDelta
from pipeline.text.tool_calls.formats import FORMATS, ToolFormat

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Bern"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "clock"}},
]
FORCED = ("hermes", "llama3", "mistral", "mistral-args", "granite", "glm4", "qwen3-coder")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(BUNDLED, 4096)


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
        bits = state.allowed()
        token_id = random.choice([one for one in range(4096) if bits[one // 8] >> one % 8 & 1])
        state.took(token_id)
        text += tokenizer.token_bytes(token_id)
    return text.removesuffix(b"<|end_of_text|>").decode()


async def test_forced_calls_may_be_several_and_their_marks_are_special_tokens(tokenizer: Tokenizer) -> None:
    form = ToolFormat(name="hermes", calls=FORMATS["hermes"], reasoning=None)
    source = read_response_format(form.forced(TOOLS, "required"))
    [state] = await Grammars(4096, [4095]).states(tokenizer, source, None, 1)
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    for token_id in tokenizer.chat_ids(f"{call}\n{call}").tolist():
        assert allows(state, token_id)
        state.took(token_id)
    assert allows(state, 4095)
    assert not state.complete
    say = {"name": "say", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}
    form = ToolFormat(name="qwen3-coder", calls=FORMATS["qwen3-coder"], reasoning=None)
    source = read_response_format(form.forced([say], "required", parallel_tool_calls=False))
    [state] = await Grammars(4096, [4095]).states(tokenizer, source, None, 1)
    call = "<tool_call>\n<function=say>\n<parameter=text>\na </param\n</parameter>\n</function>\n</tool_call>"
    for token_id in tokenizer.chat_ids(call).tolist():
        assert not state.complete
        assert allows(state, token_id)
        state.took(token_id)
    assert state.complete
    begin = read_response_format({"type": "grammar", "grammar": "start: mark", "marks": {"mark": "<|begin_of_text|>"}})
    [state] = await Grammars(4096, [4095]).states(tokenizer, begin, None, 1)
    assert [one for one in range(4096) if allows(state, one)] == [4094]
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
            "^tool_choice: a: not cannot be kept in",
        ),
        (TOOLS, "must", "hermes", "tool_choice: need 'none', 'auto', 'required' or an object that names a function"),
    ):
        with pytest.raises(RequestError, match=says):
            ToolFormat(name=name, calls=FORMATS[name], reasoning=None).forced(tools, choice)
